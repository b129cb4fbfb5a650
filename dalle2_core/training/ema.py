"""Exponential moving average of the weights, on torch's own AveragedModel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def decay_at(updates: int, decay: float) -> float:
    """Decay of the update that follows `updates` earlier ones: min(decay, (1 + n) / (10 + n)).

    The warm-up keeps the first, useless weights from staying in a short run's average.
    """
    return min(decay, (1 + updates) / (10 + updates))


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy of `model`. Its first update copies the weights; buffers are copied at every update."""
    averaged = AveragedModel(model, multi_avg_fn=_average_with(decay))
    averaged.requires_grad_(False)
    averaged.eval()
    return averaged


def _average_with(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        weight = 1.0 - decay_at(int(updates), decay)
        # torch gives the tensors of one dtype at a time; whole numbers have no average.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return average
