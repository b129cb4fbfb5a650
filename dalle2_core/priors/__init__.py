"""Priors: text embedding → image embedding. `PRIORS` holds each by its name. Ramesh et al. 2204.06125, section 2.2."""

from __future__ import annotations

from .registry import PRIORS, load_prior

__all__ = ["PRIORS", "load_prior"]
