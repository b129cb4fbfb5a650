"""Weights from DALLE2-pytorch."""

from dalle2_core.convert.prior import ConvertConfig, Converted, convert_prior, save_converted

__all__ = ["ConvertConfig", "Converted", "convert_prior", "save_converted"]
