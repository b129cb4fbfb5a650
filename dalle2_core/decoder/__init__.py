"""The unCLIP decoder: image embedding → image, by a cascade of stages. Ramesh et al. 2204.06125, section 2.1."""

from __future__ import annotations

from .decoder import Decoder
from .loading import load_decoder
from .stage import DecoderStage
from .stage_config import LowresConfig, StageConfig

__all__ = ["Decoder", "DecoderStage", "LowresConfig", "StageConfig", "load_decoder"]
