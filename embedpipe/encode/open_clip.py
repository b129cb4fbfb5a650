"""CLIP models through open_clip; the one file that imports it here."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError

from ..card import EncoderCard, PreprocessSpec
from ..errors import ModelError, did_you_mean
from ..model_name import model_folder
from .base import Embedded, EmbeddedTexts, EncoderConfig, Later, TextStates
from .precision import DTYPES, choose_precision
from .text_tower import TextTower

# `--pretrained random`: weights drawn from the seed, for tests, benchmarks and rehearsals without a network.
RANDOM = "random"

# Of a row of zeros nobody can say where it points: it is divided by this, and stays one of zeros.
_SMALLEST_NORM = 1e-12

# What open_clip and torch raise on wrong names, torn files and configurations that do not fit together.
_LOAD_PROBLEMS = (
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    KeyError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


class OpenClipEncoder:
    """Any open_clip model as an `Encoder`. Embeddings are normalised in fp32, whatever the model computes in."""

    def __init__(self, model: Any, tokenizer: Any, card: EncoderCard, device: str, config: EncoderConfig) -> None:
        self._card = card
        self._device = device
        dtype = DTYPES[card.precision]
        # CUDA keeps fp32 weights and casts as it goes (layer norms stay exact); on a CPU that is slower than fp32,
        # and weights of the lower precision are twice as fast.
        self._autocast = device.startswith("cuda") and dtype != torch.float32
        self._input_dtype = torch.float32 if self._autocast else dtype
        convolutional = _convolutional(model)
        self._memory_format = torch.channels_last if convolutional else torch.contiguous_format
        # What convolutions make of 16 pictures stays in a core's cache; of 64 it does not (180 against 111 a second).
        self._pictures_at_once = 16 if convolutional and device == "cpu" else 1 << 20
        self._model = model.to(device, dtype=self._input_dtype, memory_format=self._memory_format)
        self._texts = TextTower(self._model, tokenizer, device, config.text_batch_size)
        # Said, since CoCa's models normalise unless they are told not to.
        self._encode_image: Callable[[Any], Any] = functools.partial(self._model.encode_image, normalize=False)
        self._compile = config.compile
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(card.preprocess.mean, device=device).view(shape)
        self._std = torch.tensor(card.preprocess.std, device=device).view(shape)

    @property
    def card(self) -> EncoderCard:
        """What made the numbers."""
        return self._card

    @property
    def cuts_texts(self) -> bool:
        """Whether captions are encoded at their own length instead of the full context."""
        return self._texts.cuts

    def prepare(self, batch_size: int) -> float:
        """Compile the image tower, if that was asked for, for batches of that many pictures; returns the seconds."""
        if not self._compile:
            return 0.0
        self._compile = False
        begun = time.perf_counter()
        # Freezing folds the weights into the compiled graph; it holds for inference only. Each other batch size would
        # be compiled again, so all batches are filled up to one.
        self._pictures_at_once = size = min(batch_size, self._pictures_at_once)
        compiled = torch.compile(self._model.encode_image, options={"freezing": True})
        self._encode_image = lambda part: _run(compiled, part, size)
        self.images(torch.zeros(size, 3, *self._card.preprocess.size, dtype=torch.uint8)).wait()
        return time.perf_counter() - begun

    @torch.inference_mode()
    def images(self, pixels: torch.Tensor) -> Later:
        """uint8 [b, 3, h, w] → b embeddings and their norms. Pixels are scaled and normalised on the device.

        On CUDA this returns as soon as the work is queued there.
        """
        moved = pixels.to(self._device, non_blocking=True)
        scaled = ((moved.float() / 255 - self._mean) / self._std).to(self._input_dtype)
        parts = torch.split(scaled.contiguous(memory_format=self._memory_format), self._pictures_at_once)
        with self._casting():
            measured = _measured(torch.cat([self._encode_image(part) for part in parts]))
        return _OnItsWay(measured)

    @property
    def counts_cut_tokens(self) -> bool:
        """Whether it can tell how many tokens of a caption were cut off."""
        return self._texts.counts_cut

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> EmbeddedTexts:
        """Captions → their embeddings, norms and tokens cut; tokenised as the model's own configuration says."""
        with self._casting():
            return _of_texts(*self._texts.embed(captions))

    @torch.inference_mode()
    def text_states(self, captions: Sequence[str]) -> TextStates:
        """Captions → their embeddings and the states of their tokens. Raises ModelError where there are none."""
        if not self._texts.has_states:
            raise ModelError(
                f"{self._card.model}: its text tower gives no hidden states of tokens, since it is not open_clip's",
                "Drop --text-tokens, or take another model",
            )
        with self._casting():
            embedded, tokens_cut, tokens = self._texts.states(captions, self._card.dtype)
            return TextStates(_of_texts(embedded, tokens_cut), tokens)

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if not self._autocast:
            return contextlib.nullcontext()
        return torch.autocast("cuda", DTYPES[self._card.precision])


def _run(compiled: Any, pictures: torch.Tensor, size: int) -> torch.Tensor:
    made: torch.Tensor = compiled(_filled_up(pictures, size), normalize=False)
    return made[: len(pictures)]


def _filled_up(pictures: torch.Tensor, size: int) -> torch.Tensor:
    missing = size - len(pictures)
    return torch.cat([pictures, pictures.new_zeros(missing, *pictures.shape[1:])]) if missing else pictures


def _convolutional(model: Any) -> bool:
    """Whether the image tower is made of convolutions, which run twice as fast with channels last; a ViT has one."""
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.visual.modules()) > 4


def _measured(features: torch.Tensor) -> torch.Tensor:
    """[n, dim] → float32 [n, dim + 1]: each row at norm 1, and behind it the norm it had.

    One tensor, so that both leave a device in one copy. A row of zeros stays one.
    """
    rows = features.float()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.cat([rows / norms.clamp_min(_SMALLEST_NORM), norms], dim=-1)


def _parted(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows [n, dim], norms [n]) of what `_measured` put together."""
    return np.ascontiguousarray(measured[:, :-1]), measured[:, -1].copy()


def _of_texts(features: torch.Tensor, tokens_cut: np.ndarray | None) -> EmbeddedTexts:
    return EmbeddedTexts(*_parted(_measured(features).cpu().numpy()), tokens_cut)


class _OnItsWay:
    """What `_measured` made, perhaps still being copied from a CUDA device into pinned memory."""

    def __init__(self, measured: torch.Tensor) -> None:
        self._host = measured.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if measured.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(measured.device))

    def wait(self) -> Embedded:
        """The embeddings, once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return Embedded(*_parted(self._host.numpy()))


def load(config: EncoderConfig, device: str = "cpu") -> OpenClipEncoder:
    """Load a model. Raises ModelError for an unknown name or tag, or for weights that do not load.

    `config.model` may be an open_clip name, `hf-hub:org/repo`, `local-dir:folder`, or the folder itself.
    """
    name = _model_name(config)
    # open_clip warns on its logger about random weights and odd tags; our errors and the card say it.
    logging.getLogger().addFilter(_quiet_open_clip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(config.seed)
            random = config.pretrained == RANDOM
            model = open_clip.create_model(
                name,
                pretrained=config.pretrained if config.pretrained and not random else None,
                device="cpu",
                precision="fp32",
                require_pretrained=not random,
            )
            tokenizer = open_clip.get_tokenizer(name)
    except _LOAD_PROBLEMS as problem:
        raise _load_error(config, problem) from problem
    finally:
        logging.getLogger().removeFilter(_quiet_open_clip)
    model.eval().requires_grad_(False)
    precision = choose_precision(config.precision, device, _convolutional(model))
    card = _card(replace(config, precision=precision), model, tokenizer)
    return OpenClipEncoder(model, tokenizer, card, device, config)


def _quiet_open_clip(record: logging.LogRecord) -> bool:
    return "open_clip" not in record.pathname


def _model_name(config: EncoderConfig) -> str:
    """The name open_clip knows the model by, checked before anything heavy is done."""
    model = config.model
    if model.startswith("hf-hub:"):
        return model
    folder = model_folder(model)
    if folder is not None:
        if config.pretrained:
            raise ModelError(f"{folder}: brings its own weights, not {config.pretrained!r}", "Drop --pretrained")
        return f"local-dir:{folder}"
    if model not in open_clip.list_models() and model.replace("/", "-") not in open_clip.list_models():
        raise ModelError(f"no model {model!r}", did_you_mean(model, open_clip.list_models()))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not config.pretrained:
        known = f"a tag ({', '.join(tags[:4])} …)" if tags else "a checkpoint file"
        raise ModelError(f"{model}: no weights were named", f"Give --pretrained {known}, a file, or `random`")
    if config.pretrained != RANDOM and not Path(config.pretrained).is_file() and config.pretrained.lower() not in tags:
        raise ModelError(
            f"{model}: no pretrained tag or checkpoint file {config.pretrained!r}",
            did_you_mean(config.pretrained, [*tags, RANDOM])
            if tags
            else "This model has no tags: give a checkpoint file, or `random`",
        )
    return model


def _load_error(config: EncoderConfig, problem: Exception) -> ModelError:
    named = f"{config.model} {config.pretrained}".strip()
    if "download" in str(problem).lower() or "connect" in str(problem).lower():
        return ModelError(
            f"{named}: the weights could not be downloaded: {str(problem)[:200]}",
            "Check the network, or give --pretrained a checkpoint file on this machine",
        )
    if isinstance(problem, ModuleNotFoundError):
        return ModelError(f"{named}: needs the package {problem.name}", f"Install it: pip install {problem.name}")
    return ModelError(f"{named}: the weights do not load: {type(problem).__name__}: {str(problem)[:300]}")


def _card(config: EncoderConfig, model: Any, tokenizer: Any) -> EncoderCard:
    cfg = model.visual.preprocess_cfg
    size = cfg["size"] if isinstance(cfg["size"], tuple | list) else (cfg["size"], cfg["size"])
    spec = PreprocessSpec(
        size=(int(size[0]), int(size[1])),
        mean=_per_channel(cfg["mean"]),
        std=_per_channel(cfg["std"]),
        interpolation=cfg["interpolation"],
        resize_mode=cfg["resize_mode"],
        fill_color=int(cfg["fill_color"]),
    )
    return EncoderCard(
        model=_lasting(config.model),
        pretrained=_lasting(config.pretrained),
        weights_sha256=_weights_sha256(model),
        dim=_dim(model, spec),
        dtype=config.dtype,
        normalised=True,
        precision=config.precision,
        decode=config.decode,
        preprocess=spec,
        tokenizer=_tokenizer_name(tokenizer),
        context_length=int(tokenizer.context_length),
    )


def _per_channel(values: Any) -> tuple[float, float, float]:
    """Floats, also where a configuration says `[0, 0, 0]` or `0`: the card must read back from JSON as it was."""
    red, green, blue = values if isinstance(values, list | tuple) else (values,) * 3
    return float(red), float(green), float(blue)


def _lasting(name: str) -> str:
    """A file or folder by its absolute path, so that a search from elsewhere finds it; any other name as it is."""
    path = Path(name.removeprefix("local-dir:"))
    return str(path.resolve()) if name and path.exists() else name


def _tokenizer_name(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "tokenizer", None)
    size = getattr(tokenizer, "vocab_size", None) or getattr(inner, "vocab_size", "?")
    return f"{type(tokenizer).__name__}-{size}"


def _dim(model: Any, spec: PreprocessSpec) -> int:
    # Towers of other libraries do not all say their output width; one pass over a blank image does.
    with torch.inference_mode():
        return int(model.encode_image(torch.zeros(1, 3, *spec.size)).shape[-1])


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def known_models() -> dict[str, list[str]]:
    """Model name → pretrained tags (none where only a checkpoint file can be given)."""
    return {name: open_clip.list_pretrained_tags_by_model(name) for name in open_clip.list_models()}
