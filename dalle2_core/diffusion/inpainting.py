"""Inpainting with a model that was not trained for it. Lugmayr et al. 2201.09865 (RePaint)."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle2_core.diffusion.posterior import Denoise
from dalle2_core.diffusion.samplers import Step, timestep_pairs
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.rng import RNG, normal


def repaint(
    denoise: Denoise,
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

    resample_times: how often each step is taken, with noise added back in between, so that the inpainted part comes to
    agree with the known one.
    """
    x, x0 = x_T, None
    for t, s in timestep_pairs(timesteps):
        for attempt in reversed(range(resample_times)):
            # The network sees the known part at its own noise level, never a mixture of two.
            x = torch.where(mask, noised(known, schedule, t, draws), x)
            given = denoise(x, t.expand(len(x)), x0)
            x, x0 = step(x, given, schedule, t, s, draws), given.x0
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
    return schedule.alpha(t) / schedule.alpha(s) * x + schedule.variance_between(t, s).sqrt() * noise
