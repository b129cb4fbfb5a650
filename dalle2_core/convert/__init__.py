"""Weights and configs from DALLE2-pytorch."""

from dalle2_core.convert.prior import ConvertConfig, Converted, convert_prior, save_converted
from dalle2_core.convert.published_config import PublishedPrior, read_prior_config

__all__ = [
    "ConvertConfig",
    "Converted",
    "PublishedPrior",
    "convert_prior",
    "read_prior_config",
    "save_converted",
]
