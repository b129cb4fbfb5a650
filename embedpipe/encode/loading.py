"""Load a model through open_clip: `model_spec` says what it must compute, `built` checks that it does."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError

from ..clip_model.architecture import ModelSpec, of_config
from ..clip_model.encoder_card import EncoderCard, PreprocessSpec
from ..clip_model.name import model_folder
from ..clip_model.spec import RANDOM, ModelOptions, require_weights, resolve_spec
from ..consent import HUB
from ..errors import MissingExtra, ModelError
from ..pickled import REMEDY, pickle_refusal
from .base import EncoderConfig
from .data_only import as_data, asking_no_hub, require_data_only, unreachable_hub
from .model_checks import checked
from .open_clip import OpenClipEncoder, is_convolutional
from .precision import choose_precision

# What open_clip and torch raise for unknown names, truncated files and inconsistent configurations.
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
# One model at a time: what is silenced and forbidden meanwhile is so for the whole process, until it is put back.
_LOADING = threading.RLock()


def load_model(config: EncoderConfig, device: str = "cpu") -> OpenClipEncoder:
    """Load a model.

    Raises ModelError (an unknown name or tag, options that contradict it, weights that do not load) and MissingExtra.

    `config.model` may be an open_clip name, `hf-hub:org/repo`, `local-dir:folder`, or the folder itself.
    """
    # Report invalid names, tags and options before any expensive step.
    own = _own_name(config)
    if config.as_version_0_1 and config.options != ModelOptions():
        raise ModelError(
            f"{config.model}: to be built as version 0.1 did, which took no options of activation or preprocessing",
            "Drop them",
        )
    name = own or require_weights(config.model, config.pretrained)
    spec = None if own or config.as_version_0_1 else resolve_spec(config.model, config.pretrained, config.options)
    unreachable = unreachable_hub() if _is_of_hub(config) else None
    try:
        with _LOADING, _without_known_noise(), asking_no_hub(unreachable is not None):
            torch.manual_seed(config.seed)
            if config.as_version_0_1:
                needs_hub = require_data_only(name) if own else True
                with as_data(transformers=False, offline=not needs_hub):
                    model, tokenizer = _built_as_version_0_1(name, config)
            else:
                needs_hub = require_data_only(name) if own else True
                spec = spec or of_config(name, open_clip.get_model_config(name), None)
                _require_transformers(config, spec)
                with as_data(spec.needs_transformers, offline=not needs_hub):
                    model, tokenizer = _built(spec, config)
    except _LOAD_PROBLEMS as problem:
        raise _load_error(config, problem, unreachable) from problem
    model.eval().requires_grad_(False)
    precision = choose_precision(config.precision, device, is_convolutional(model))
    config = replace(config, precision=precision)
    card = _card(config, model, tokenizer)
    if spec is not None:
        card = checked(config, spec, card, model, tokenizer)
    return OpenClipEncoder(model, tokenizer, card, device, config)


def _is_of_hub(config: EncoderConfig) -> bool:
    """Whether weights or configuration may have to be downloaded."""
    if config.model.startswith(HUB):
        return True
    return model_folder(config.model) is None and config.pretrained != RANDOM and not Path(config.pretrained).exists()


def _own_name(config: EncoderConfig) -> str | None:
    """open_clip's name of a model with its own configuration; None for one in its tables."""
    of_hub = config.model.startswith(HUB)
    folder = None if of_hub else model_folder(config.model)
    if not of_hub and folder is None:
        return None
    if config.pretrained:
        raise ModelError(
            f"{folder or config.model}: brings its own weights, not {config.pretrained!r}", "Drop `pretrained`"
        )
    return config.model if of_hub else f"local-dir:{folder}"


def _built(spec: ModelSpec, config: EncoderConfig) -> tuple[Any, Any]:
    random = config.pretrained == RANDOM
    own = spec.preprocess is None
    model = open_clip.create_model(
        spec.model,
        pretrained=None if own or random else config.pretrained,
        device="cpu",
        precision="fp32",
        force_quick_gelu=spec.quick_gelu and not own,
        force_preprocess_cfg=spec.preprocess,
        pretrained_text=not random,
        require_pretrained=not random,
    )
    return model, _tokenizer(spec)


def _tokenizer(spec: ModelSpec) -> Any:
    if spec.needs_transformers:
        return open_clip.get_tokenizer(spec.model)
    text = spec.text_preprocess
    return _bpe_tokenizer(
        open_clip.get_tokenizer, spec.model, spec.context_length, text.clean, json.dumps(text.options, sort_keys=True)
    )


@functools.lru_cache(maxsize=8)
def _bpe_tokenizer(get: Callable[[str], Any], model: str, *options: Any) -> Any:
    # Reading the vocabulary takes longer than the rest of loading a small model. A folder's options may have changed.
    return get(model)


def _built_as_version_0_1(name: str, config: EncoderConfig) -> tuple[Any, Any]:
    """The model as version 0.1 built it: with the bare architecture's activation, whatever the tag was trained with."""
    random = config.pretrained == RANDOM
    model = open_clip.create_model(
        name,
        pretrained=config.pretrained if config.pretrained and not random else None,
        device="cpu",
        precision="fp32",
        require_pretrained=not random,
    )
    return model, open_clip.get_tokenizer(name)


@contextlib.contextmanager
def _without_known_noise() -> Iterator[None]:
    """Within the block, suppress three known messages of open_clip, and what the hub's client says of its retries."""

    def wanted(record: logging.LogRecord) -> bool:
        # Random weights are intended here (weights are required otherwise); a failed download also raises an error.
        known = ("No pretrained weights loaded for model", "Failed to download weights for tag")
        return not record.getMessage().startswith(known)

    with warnings.catch_warnings():
        # It compares a tag with the architecture's default. The activation has been resolved, and is checked.
        warnings.filterwarnings("ignore", message="QuickGELU mismatch", category=UserWarning)
        logging.getLogger().addFilter(wanted)
        client = logging.getLogger("huggingface_hub")
        level = client.level
        client.setLevel(logging.ERROR)
        try:
            yield
        finally:
            client.setLevel(level)
            logging.getLogger().removeFilter(wanted)


def _require_transformers(config: EncoderConfig, spec: ModelSpec) -> None:
    if spec.needs_transformers and importlib.util.find_spec("transformers") is None:
        raise _missing_extra(config, "transformers")


def _missing_extra(config: EncoderConfig, package: str) -> MissingExtra:
    named = f"{config.model} {config.pretrained}".strip()
    return MissingExtra(
        f"{named}: its captions go through a tokenizer of Hugging Face, and {package} is not installed",
        'pip install "embedpipe[hf]"',
    )


def _load_error(config: EncoderConfig, problem: Exception, unreachable: str | None) -> ModelError | MissingExtra:
    named = f"{config.model} {config.pretrained}".strip()
    if "download" in str(problem).lower() or "connect" in str(problem).lower():
        instead = (
            "copy the repository to this machine and give its folder with `model`"
            if config.model.startswith(HUB)
            else "give a checkpoint file on this machine with `pretrained`, and the tag with `like_tag`"
        )
        return ModelError(
            f"{named}: the weights could not be downloaded: {unreachable or str(problem)[:200]}",
            f"Check the network, or {instead}",
        )
    if (pickled := pickle_refusal(problem)) is not None:
        return ModelError(f"{named}: the weights do not load: the file {pickled}", REMEDY)
    if isinstance(problem, ModuleNotFoundError):
        if problem.name in ("transformers", "tokenizers", "sentencepiece"):
            return _missing_extra(config, problem.name)
        return ModelError(f"{named}: needs the package {problem.name}", f"Install it: pip install {problem.name}")
    return ModelError(f"{named}: the weights do not load: {type(problem).__name__}: {str(problem)[:300]}")


def _card(config: EncoderConfig, model: Any, tokenizer: Any) -> EncoderCard:
    """The card with the fields of version 0.1."""
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
    """Floats, even if a configuration has `[0, 0, 0]` or `0`: the card must survive a round trip through JSON."""
    red, green, blue = values if isinstance(values, list | tuple) else (values,) * 3
    return float(red), float(green), float(blue)


def _lasting(name: str) -> str:
    """A file or folder as an absolute path, so that a search from another folder finds it; other names unchanged."""
    path = Path(name.removeprefix("local-dir:"))
    return str(path.resolve()) if name and path.exists() else name


def _tokenizer_name(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "tokenizer", None)
    size = getattr(tokenizer, "vocab_size", None) or getattr(inner, "vocab_size", "?")
    return f"{type(tokenizer).__name__}-{size}"


def _dim(model: Any, spec: PreprocessSpec) -> int:
    # Not all towers of other libraries expose their output width; encoding a blank image reveals it.
    with torch.inference_mode():
        return int(model.encode_image(torch.zeros(1, 3, *spec.size)).shape[-1])


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
