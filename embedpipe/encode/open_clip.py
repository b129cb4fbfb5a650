"""An open_clip model as an `Encoder`, once `loading` has loaded it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..clip_model.encoder_card import EncoderCard
from ..errors import ModelError
from .base import Embedded, EmbeddedTexts, EncoderConfig, Later, TextStates
from .lower_weights import lower_weights
from .precision import torch_dtype
from .text_tower import TextPass, TextTower

# Divisor for rows of zeros, which have no direction and stay zero.
_SMALLEST_NORM = 1e-12


class OpenClipEncoder:
    """Any open_clip model as an `Encoder`. Embeddings are normalised in fp32, whatever the model's precision."""

    def __init__(self, model: Any, tokenizer: Any, card: EncoderCard, device: str, config: EncoderConfig) -> None:
        self._card = card
        self._device = device
        dtype = torch_dtype(card.precision)
        convolutional = is_convolutional(model)
        # fp16 overflows where sums of blocks are not kept in fp32, and convolutions have batch norms between them:
        # there CUDA keeps fp32 weights and casts as it goes. On a CPU that is slower than fp32.
        on_gpu = device.startswith("cuda")
        self._autocast = on_gpu and (dtype == torch.float16 or (convolutional and dtype != torch.float32))
        self._input_dtype = torch.float32 if self._autocast else dtype
        self._memory_format = torch.channels_last if convolutional else torch.contiguous_format
        # Activations of 16 images fit a core's cache; those of 64 do not (180 versus 111 images/s).
        self._pictures_at_once = 16 if convolutional and device == "cpu" else 1 << 20
        if on_gpu and self._input_dtype != torch.float32:
            lower_weights(model, self._input_dtype)
            self._model = model.to(device, memory_format=self._memory_format)
        else:
            self._model = model.to(device, dtype=self._input_dtype, memory_format=self._memory_format)
        self._texts = TextTower(self._model, tokenizer, device, config.text_batch_size)
        # Explicit, since CoCa's models normalise by default.
        self._encode_image: Callable[[Any], Any] = functools.partial(self._model.encode_image, normalize=False)
        self._compile = config.compile
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(card.preprocess.mean, device=device).view(shape)
        self._std = torch.tensor(card.preprocess.std, device=device).view(shape)

    @property
    def card(self) -> EncoderCard:
        """The model card."""
        return self._card

    def prepare(self, batch_size: int) -> float:
        """Compile the image tower, if requested, for batches of that many images; returns the seconds."""
        if not self._compile:
            return 0.0
        self._compile = False
        begun = time.perf_counter()
        # Freezing folds the weights into the compiled graph, for inference only. Each other batch size would be
        # compiled again, so all batches are padded to the same size.
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
        """Whether the number of truncated tokens is known."""
        return self._texts.counts_cut

    def texts(self, captions: Sequence[str]) -> EmbeddedTexts:
        """Captions → their embeddings, norms and truncated tokens; tokenised by the model's own configuration."""
        return self.begin_texts(captions, False).embedded()

    def text_states(self, captions: Sequence[str]) -> TextStates:
        """Captions → their embeddings and token states. Raises ModelError if the tower does not expose them."""
        return self.begin_texts(captions, True).with_states()

    def begin_texts(self, captions: Sequence[str], with_states: bool) -> _TextRun:
        """Tokenise captions, on any thread; see `EncodesInSteps`. Raises ModelError as `text_states` does."""
        if with_states and not self._texts.has_states:
            raise ModelError(
                f"{self._card.model}: its text tower gives no hidden states of tokens, since it is not open_clip's",
                "Drop `text_tokens`, or take another model",
            )
        return _TextRun(self._texts.begin(captions, self._card.dtype if with_states else None), self._casting)

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if not self._autocast:
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch_dtype(self._card.precision))


def _run(compiled: Any, pictures: torch.Tensor, size: int) -> torch.Tensor:
    made: torch.Tensor = compiled(_filled_up(pictures, size), normalize=False)
    return made[: len(pictures)]


def _filled_up(pictures: torch.Tensor, size: int) -> torch.Tensor:
    missing = size - len(pictures)
    return torch.cat([pictures, pictures.new_zeros(missing, *pictures.shape[1:])]) if missing else pictures


def is_convolutional(model: Any) -> bool:
    """Whether the image tower is convolutional, and so twice as fast with channels last; a ViT has one convolution."""
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.visual.modules()) > 4


def _measured(features: torch.Tensor) -> torch.Tensor:
    """[n, dim] → float32 [n, dim + 1]: each row normalised, followed by its original norm.

    One tensor, so that both leave a device in one copy. Rows of zeros stay zero.
    """
    rows = features.float()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.cat([rows / norms.clamp_min(_SMALLEST_NORM), norms], dim=-1)


def _parted(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split the output of `_measured` into (rows [n, dim], norms [n])."""
    return np.ascontiguousarray(measured[:, :-1]), measured[:, -1].copy()


def _of_texts(features: torch.Tensor, tokens_cut: np.ndarray | None) -> EmbeddedTexts:
    return EmbeddedTexts(*_parted(_measured(features).cpu().numpy()), tokens_cut)


class _TextRun:
    """See `TextRun`. casting: the context in which a tower computes."""

    def __init__(self, through: TextPass, casting: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._through = through
        self._casting = casting

    @property
    def left(self) -> int:
        """See `TextRun.left`."""
        return self._through.left

    def step(self) -> None:
        """See `TextRun.step`."""
        with torch.inference_mode(), self._casting():
            self._through.step()

    def result(self) -> EmbeddedTexts | TextStates:
        """See `TextRun.result`."""
        return self.with_states() if self._through.has_states else self.embedded()

    def embedded(self) -> EmbeddedTexts:
        """The embeddings alone."""
        with torch.inference_mode(), self._casting():
            features, tokens_cut, _ = self._through.result()
            return _of_texts(features, tokens_cut)

    def with_states(self) -> TextStates:
        """The embeddings, and the token states that were requested."""
        with torch.inference_mode(), self._casting():
            features, tokens_cut, tokens = self._through.result()
            assert tokens is not None
            return TextStates(_of_texts(features, tokens_cut), tokens)


class _OnItsWay:
    """The output of `_measured`, perhaps still being copied from a CUDA device to pinned memory."""

    def __init__(self, measured: torch.Tensor) -> None:
        self._host = measured.to("cpu", non_blocking=True)
        self._device = measured.device
        self._copied: torch.cuda.Event | None = None
        if measured.device.type == "cuda":
            # Blocking: waiting by default keeps a core busy, which decoding needs.
            with torch.cuda.device(measured.device):
                self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(measured.device))

    def wait(self) -> Embedded:
        """Wait for the embeddings."""
        if self._copied is not None:
            # A thread's current device is the first one until it says otherwise, and would get a context by waiting.
            with torch.cuda.device(self._device):
                self._copied.synchronize()
        return Embedded(*_parted(self._host.numpy()))
