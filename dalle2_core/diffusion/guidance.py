"""Classifier-free guidance: a denoiser around a denoiser, so that no sampler knows about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor


class Droppable(Protocol):
    """A condition that can be dropped. `joined` puts another's rows after its own."""

    def unconditional(self: D) -> D: ...

    def joined(self: D, other: D) -> D: ...


C = TypeVar("C")
D = TypeVar("D", bound=Droppable)
ConditionalDenoise = Callable[[Tensor, Tensor, C, Tensor | None], Tensor]


def guided(denoise: ConditionalDenoise[D], scale: float) -> ConditionalDenoise[D]:
    """Move the estimate of x0 from the unconditional one towards, and past, the conditional one.

    unconditional + scale (conditional - unconditional); Ho & Salimans 2207.12598, equation 6, which is the same in
    x0 as in noise. Both estimates see the same x_t and come from one batched call. Scale 1 is no guidance
    and costs one estimate.
    """
    if scale == 1.0:
        return denoise
    of_both = guided_pair(denoise, scale)

    def denoise_guided(x_t: Tensor, t: Tensor, condition: D, self_cond: Tensor | None = None) -> Tensor:
        return of_both(x_t, t, condition.joined(condition.unconditional()), self_cond)

    return denoise_guided


def guided_pair(denoise: ConditionalDenoise[C], scale: float) -> ConditionalDenoise[C]:
    """As `guided`, for a condition that holds both kinds already: b rows, then the same rows without."""

    def denoise_guided(x_t: Tensor, t: Tensor, condition: C, self_cond: Tensor | None = None) -> Tensor:
        both = denoise(
            torch.cat((x_t, x_t)),
            torch.cat((t, t)),
            condition,
            None if self_cond is None else torch.cat((self_cond, self_cond)),
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return denoise_guided
