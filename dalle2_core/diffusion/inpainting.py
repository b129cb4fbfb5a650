"""Filling in what a mask hides, with a model that was not trained for it. Lugmayr et al. 2201.09865 (RePaint)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_core.diffusion.samplers import pairs, variance_between
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.rng import RNG, normal

# (x_t, t, s, earlier estimate of x0) → (x_s, estimate of x0); t and s are single timesteps.
Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def repaint(
    step: Step,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Tensor,
    known: Tensor,
    mask: Tensor,
    resample_times: int,
    draws: RNG,
) -> Tensor:
    """A sample [b, c, h, w] that is `known` [b, c, h, w] where `mask` [b, 1, h, w] is True. Algorithm 1 there.

    resample_times: each step is taken so many times, with noise added back in between, so that what is filled in
    comes to agree with what is known.
    """
    x, x0 = x_T, None
    for t, s in pairs(timesteps):
        for attempt in reversed(range(resample_times)):
            # The network sees the known part at its own noise level, never a mixture of two.
            x = torch.where(mask, noised(known, schedule, t, draws), x)
            x, x0 = step(x, t, s, x0)
            if attempt and int(s) >= 0:
                x = renoised(x, schedule, s, t, draws)
            elif attempt:
                break  # Clean: to add noise again would undo the sample.
    return torch.where(mask, known, x)


def noised(x0: Tensor, schedule: NoiseSchedule, t: Tensor, draws: RNG) -> Tensor:
    """x_t drawn from q(x_t | x0); t is a single timestep."""
    return schedule.alpha(t) * x0 + schedule.sigma(t) * normal(x0.shape, draws, x0.device, x0.dtype)


def renoised(x: Tensor, schedule: NoiseSchedule, s: Tensor, t: Tensor, draws: RNG) -> Tensor:
    """x_t drawn from q(x_t | x_s = x), s < t."""
    noise = normal(x.shape, draws, x.device, x.dtype)
    return schedule.alpha(t) / schedule.alpha(s) * x + variance_between(schedule, t, s).sqrt() * noise
