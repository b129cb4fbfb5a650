"""Encode images and captions to embeddings. ENCODERS maps a name to the loader of an encoder.

The package itself is callable: `embedpipe.encode(data, out, config)` is `embedpipe.encode.job.encode`.
"""

from __future__ import annotations

from ..callable_package import callable_as
from ..errors import ModelError, did_you_mean
from ..imports import uncollected
from .base import Encoder, EncoderConfig


def _open_clip(config: EncoderConfig, device: str) -> Encoder:
    with uncollected():
        from . import loading  # lazy: imports open_clip and torchvision

    return loading.load_model(config, device)


ENCODERS = {"open_clip": _open_clip}

__all__ = ["ENCODERS", "Encoder", "EncoderConfig", "load_encoder"]


def load_encoder(config: EncoderConfig, device: str = "cpu") -> Encoder:
    """Load the encoder that `config` names. Raises ModelError."""
    if config.encoder not in ENCODERS:
        raise ModelError(f"no encoder {config.encoder!r}", did_you_mean(config.encoder, ENCODERS))
    return ENCODERS[config.encoder](config, device)


callable_as(__name__, ".job:encode")
