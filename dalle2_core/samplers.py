"""Samplers: plain functions from noise to data.

denoise(x_t, t, previous_x0) gives the estimate of x0, [b, …]; t is [b]; previous_x0 is the estimate of the step
before, for self-conditioning, None at first. `timesteps` falls; after its last one comes the clean data (t = -1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from dalle2_core.draws import Draws, normal_like
from dalle2_core.errors import ConfigError
from dalle2_core.schedules import NoiseSchedule

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Sampler(Protocol):
    """From x_T [b, …], standard normal, to a sample of the data, [b, …]."""

    def __call__(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        x_T: Tensor,
        timesteps: Tensor,
        generator: Draws,
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
    generator: Draws,
) -> Tensor:
    """Ancestral sampling: draw x_s from q(x_s | x_t, x0), s < t. Ho et al. 2006.11239, equations 6 and 7.

    With t and s any distance apart, as in Kingma et al. 2107.00630, appendix A.
    """
    x, x0 = x_T, None
    for t, s in pairs(timesteps):
        x0 = denoise(x, t.expand(len(x)), x0)
        x = ddpm_step(x, x0, schedule, t, s, generator)
    return x


def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Tensor,
    timesteps: Tensor,
    generator: Draws,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. 2010.02502, equations 12 and 16. eta 0 draws nothing after x_T; eta 1 is ddpm."""
    x, x0 = x_T, None
    for t, s in pairs(timesteps):
        x0 = denoise(x, t.expand(len(x)), x0)
        x = ddim_step(x, x0, schedule, t, s, generator, eta=eta)
    return x


def ddpm_step(x: Tensor, x0: Tensor, schedule: NoiseSchedule, t: Tensor, s: Tensor, generator: Draws) -> Tensor:
    """x_s drawn from q(x_s | x_t = x, x0)."""
    mean, variance = posterior(x, x0, schedule, t, s)
    return mean + variance.sqrt() * normal_like(x, generator)


def ddim_step(
    x: Tensor, x0: Tensor, schedule: NoiseSchedule, t: Tensor, s: Tensor, generator: Draws = None, *, eta: float = 0.0
) -> Tensor:
    """x_s on the way from x_t = x to x0. With eta 0, s may also be noisier than t: the same path backwards."""
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    noise = (x - alpha_t * x0) / sigma_t
    if eta == 0.0:
        return alpha_s * x0 + sigma_s * noise
    fresh = eta * (sigma_s / sigma_t) * (1.0 - (alpha_t / alpha_s) ** 2).clamp(min=0.0).sqrt()
    x = alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0.0).sqrt() * noise
    return x + fresh * normal_like(x, generator)


def posterior(x: Tensor, x0: Tensor, schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t = x, x0), s < t, both single timesteps. 2006.11239, equations 6 and 7."""
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - (alpha_ts * sigma_s) ** 2
    mean = (alpha_ts * sigma_s**2 * x + alpha_s * variance_ts * x0) / sigma_t**2
    return mean, variance_ts * (sigma_s / sigma_t) ** 2


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim}


def pairs(timesteps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each timestep and the next less noisy one; -1, the clean data, after the last."""
    clean = timesteps.new_full((1,), -1)
    return zip(timesteps, torch.cat((timesteps[1:], clean)), strict=True)
