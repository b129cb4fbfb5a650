"""Samplers: plain functions from noise to data.

denoise(x_t, t, previous_x0) gives the posterior of x0; t is [b]; previous_x0 is the estimate of x0 of the step before,
for self-conditioning, None at first. `timesteps` falls; after its last one comes the clean data (t = -1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from dalle2_core.diffusion.posterior import Denoise, Posterior, transition
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.errors import ConfigError
from dalle2_core.rng import RNG, normal


class Step(Protocol):
    """From x_t = x and the posterior there to x_s, s < t, both single timesteps."""

    def __call__(
        self, x: Tensor, given: Posterior, schedule: NoiseSchedule, t: Tensor, s: Tensor, generator: RNG
    ) -> Tensor: ...


class Sampler(Protocol):
    """From x_T [b, …], standard normal, to a sample of the data, [b, …]."""

    def __call__(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        x_T: Tensor,
        timesteps: Tensor,
        generator: RNG,
    ) -> Tensor: ...


def timesteps_for(schedule: NoiseSchedule, steps: int) -> Tensor:
    """`steps` distinct timesteps, evenly spaced from T-1 down to 0 (T-1 alone for one step), [steps] int64."""
    if not 1 <= steps <= schedule.timesteps:
        raise ConfigError(
            f"{steps} sampling steps of a schedule of {schedule.timesteps} timesteps; choose 1 to {schedule.timesteps}"
        )
    return torch.linspace(schedule.timesteps - 1, 0, steps, dtype=torch.float64).round().long()


def ddpm(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Tensor,
    generator: RNG,
) -> Tensor:
    """Ancestral sampling: draw x_s from q(x_s | x_t, x0), s < t. Ho et al. 2006.11239, equations 6 and 7.

    With t and s any distance apart, as in Kingma et al. 2107.00630, appendix A.
    """
    x, x0 = x_T, None
    for t, s in timestep_pairs(timesteps):
        given = denoise(x, t.expand(len(x)), x0)
        x, x0 = ddpm_step(x, given, schedule, t, s, generator), given.x0
    return x


def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Tensor,
    generator: RNG,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. 2010.02502, equations 12 and 16. eta 0 draws nothing after x_T; eta 1 is ddpm.

    On the "flow" schedule, eta 0 is Euler's method along the straight paths.
    """
    x, x0 = x_T, None
    for t, s in timestep_pairs(timesteps):
        given = denoise(x, t.expand(len(x)), x0)
        x, x0 = ddim_step(x, given, schedule, t, s, generator, eta=eta), given.x0
    return x


def dpm_solver(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Tensor,
    generator: RNG,
) -> Tensor:
    """DPM-Solver++(2M): second order from the estimates of two steps. Lu et al. 2211.01095, algorithm 2.

    The first step, and the last one to the clean data, are of first order: the logarithm of the signal-to-noise ratio
    is infinite there. Draws nothing after x_T.
    """
    x = x_T
    x0: Tensor | None = None
    h_before: Tensor | None = None
    for step, (t, s) in enumerate(timestep_pairs(timesteps), start=1):
        before, x0 = x0, denoise(x, t.expand(len(x)), x0).x0
        alpha_s, sigma_s, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.sigma(t)
        # How far the step goes, in half the logarithm of the signal-to-noise ratio.
        h = torch.log(alpha_s / sigma_s) - torch.log(schedule.alpha(t) / sigma_t)
        estimate = x0
        if before is not None and h_before is not None and step < len(timesteps):
            estimate = x0 + h / (2 * h_before) * (x0 - before)
        x = sigma_s / sigma_t * x - alpha_s * torch.expm1(-h) * estimate
        h_before = h
    return x


def ddpm_step(x: Tensor, given: Posterior, schedule: NoiseSchedule, t: Tensor, s: Tensor, generator: RNG) -> Tensor:
    """x_s drawn from p(x_s | x_t = x)."""
    mean, deviation = transition(x, given, schedule, t, s)
    return mean + deviation * _noise(x, generator)


def ddim_step(
    x: Tensor,
    given: Posterior,
    schedule: NoiseSchedule,
    t: Tensor,
    s: Tensor,
    generator: RNG = None,
    *,
    eta: float = 0.0,
) -> Tensor:
    """x_s on the way from x_t = x to x0."""
    x0 = given.x0
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    noise = (x - alpha_t * x0) / sigma_t
    fresh = eta * (sigma_s / sigma_t) * schedule.variance_between(t, s).sqrt()
    x = alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0.0).sqrt() * noise
    return x + fresh * _noise(x, generator) if eta > 0.0 else x


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpm-solver++": dpm_solver}


def timestep_pairs(timesteps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each timestep and the next less noisy one; -1, the clean data, after the last."""
    clean = timesteps.new_full((1,), -1)
    return zip(timesteps, torch.cat((timesteps[1:], clean)), strict=True)


def _noise(like: Tensor, generator: RNG) -> Tensor:
    return normal(like.shape, generator, like.device, like.dtype)
