"""Classifier-free guidance: a denoiser around a denoiser, so that no sampler knows about it.

nothing + scale (something - nothing), which is the same in x0 as in noise: Ho & Salimans 2207.12598, equation 6. With
several conditions each difference has a scale of its own: Brooks et al. 2211.09800, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dalle2_core.diffusion.posterior import Denoise, Posterior

C = TypeVar("C", bound="Joinable")


class Joinable(Protocol):
    """A condition of b rows. `joined` puts another's rows after its own."""

    def joined(self: C, other: C) -> C: ...


def branches(conditions: Sequence[C], scales: Sequence[float]) -> tuple[C, tuple[float, ...]]:
    """What `guided` needs, from n + 1 conditions and n scales: the branches' conditions, joined, and their weights.

    conditions: the full one, and each next one without something. scales: of what the next one lacks. Branches without
    weight are left out, the full one excepted.
    """
    weights = [scale - before for before, scale in pairwise((0.0, *scales, 1.0))]
    kept = [index for index, weight in enumerate(weights) if weight != 0.0 or index == 0]
    joined = reduce(lambda one, other: one.joined(other), (conditions[index] for index in kept))
    return joined, tuple(weights[index] for index in kept)


def guided(denoise: Denoise, weights: Sequence[float]) -> Denoise:
    """A denoiser of b rows from one of len(weights) times as many: all branches see the same x_t, in one call.

    denoise: under the joined condition of `branches`, which gives the weights. The variance stays the full condition's.
    """
    times = len(weights)
    if times == 1:
        return denoise

    def denoise_guided(x_t: Tensor, t: Tensor, self_cond: Tensor | None) -> Posterior:
        x0, fraction = denoise(
            torch.cat([x_t] * times),
            torch.cat([t] * times),
            None if self_cond is None else torch.cat([self_cond] * times),
        )
        return Posterior(combined(x0, weights), None if fraction is None else fraction[: len(x_t)])

    return denoise_guided


def combined(estimates: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum [b, …] of the branches' estimates [len(weights) b, …]; of one branch, its own."""
    if len(weights) == 1:
        return estimates
    parts = estimates.chunk(len(weights))
    return reduce(torch.add, (weight * part for weight, part in zip(weights, parts, strict=True)))
