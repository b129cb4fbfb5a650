"""Autoencoders whose latents a decoder stage can work in. `AUTOENCODERS` holds each by the kind its folder names."""

from __future__ import annotations

from .base import Autoencoder
from .registry import AUTOENCODERS, load_autoencoder

__all__ = ["AUTOENCODERS", "Autoencoder", "load_autoencoder"]
