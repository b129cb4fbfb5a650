"""DDIM inversion: the noise from which DDIM makes a given image. Dhariwal & Nichol 2105.05233, appendix F."""

from __future__ import annotations

from torch import Tensor

from dalle2_core.diffusion.posterior import Denoise
from dalle2_core.diffusion.samplers import timestep_pairs
from dalle2_core.diffusion.schedules import NoiseSchedule


def ddim_inverse(
    denoise: Denoise, schedule: NoiseSchedule, x0: Tensor, timesteps: Tensor, refinements: int = 0
) -> Tensor:
    """x_T from which `ddim` over the same falling timesteps comes back to x0 [b, …].

    A step from s up to t needs the estimate at x_t, which is unknown; the one at x_s is taken instead, so sampling
    misses x0 by a little, less with more steps. refinements: how often each step is solved again with the x_t found
    before; each costs one more estimate and reduces the error.
    """
    x = x0
    for t, s in reversed(list(timestep_pairs(timesteps))):
        found = x
        for _ in range(1 + refinements):
            found = _up(denoise, schedule, x, found, s, t)
        x = found
    return x


def _up(denoise: Denoise, schedule: NoiseSchedule, x_s: Tensor, near: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The x_t from which DDIM steps to x_s, with the noise estimated at `near`."""
    estimate = denoise(near, t.expand(len(near)), None)
    noise = (near - schedule.alpha(t) * estimate.x0) / schedule.sigma(t)
    x0 = (x_s - schedule.sigma(s) * noise) / schedule.alpha(s)
    return schedule.alpha(t) * x0 + schedule.sigma(t) * noise
