"""Exponential moving average of the weights, on torch's own AveragedModel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dalle2_core.modules import unchanged_weights

M = TypeVar("M", bound="_HostCounted")


def decay_at(updates: int, decay: float) -> float:
    """Decay of the update that follows `updates` earlier ones: min(decay, (1 + n) / (10 + n)).

    The warm-up keeps the first, useless weights from staying in a short run's average.
    """
    return min(decay, (1 + updates) / (10 + updates))


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy of `model`. Its first update copies the weights; buffers are copied at every update.

    Weights that never change are the model's own, and not held twice.
    """
    averaged = _HostCounted(model, multi_avg_fn=_average_with(decay, lambda: int(averaged.n_averaged)))
    averaged.requires_grad_(False)
    for name in unchanged_weights(model):
        place, _, own = name.rpartition(".")
        setattr(averaged.module.get_submodule(place), own, model.get_parameter(name))
    averaged.eval()
    return averaged


class _HostCounted(AveragedModel):
    """Its count of updates stays on the host, which would otherwise wait for the device to know it."""

    def _apply(self: M, fn: Callable[..., Any], recurse: bool = True) -> M:
        count = self.n_averaged
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.n_averaged = count
        return self


def _average_with(decay: float, updates: Callable[[], int]) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
        weight = 1.0 - decay_at(updates(), decay)
        # torch gives the tensors of one dtype at a time; whole numbers have no average.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return average
