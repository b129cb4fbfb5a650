"""Thresholding: keep an estimate of an image in the range of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Threshold = Callable[[Tensor], Tensor]


def static(x0: Tensor) -> Tensor:
    """Clip to [-1, 1]."""
    return x0.clamp(-1.0, 1.0)


def dynamic(percentile: float) -> Threshold:
    """Clip each row to its own percentile of |x0|, where that is beyond 1, and scale it back to [-1, 1].

    Saharia et al. 2205.11487, section 2.3: large guidance pushes pixels out of the range, and clipping alone
    would saturate them.
    """

    def threshold(x0: Tensor) -> Tensor:
        magnitudes = x0.abs().flatten(1)
        # kthvalue, as quantile takes no more than 16 million numbers; the same to within one pixel's rank.
        rank = max(1, min(magnitudes.shape[1], round(percentile * magnitudes.shape[1])))
        limit = magnitudes.kthvalue(rank, dim=1).values.clamp(min=1.0)
        limit = limit.view(-1, *(1,) * (x0.ndim - 1))
        return torch.maximum(torch.minimum(x0, limit), -limit) / limit

    return threshold


def none(x0: Tensor) -> Tensor:
    """As it is: latents have no range."""
    return x0


THRESHOLDS = ("static", "dynamic", "none")


def threshold_named(name: str, percentile: float) -> Threshold:
    """name: one of THRESHOLDS."""
    return {"static": static, "dynamic": dynamic(percentile), "none": none}[name]
