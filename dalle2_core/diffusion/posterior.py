"""What a denoiser gives for x_t, and the distribution of a less noisy x_s that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dalle2_core.diffusion.schedules import NoiseSchedule


class Posterior(NamedTuple):
    """x0 given x_t.

    x0: its mean, [b, …]. fraction: where the variance of a step lies between its logarithm's two bounds, the shape of
    x0 (see `log_variance`); None where the variance is not learned.
    """

    x0: Tensor
    fraction: Tensor | None = None


# (x_t [b, …], t [b], an earlier estimate of x0 or None) → posterior. The condition is bound, guidance wraps it.
Denoise = Callable[[Tensor, Tensor, Tensor | None], Posterior]


def transition(x: Tensor, given: Posterior, schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(x_s | x_t = x), s < t, both single timesteps. The clean data have none."""
    mean, variance = posterior(x, given.x0, schedule, t, s)
    if given.fraction is None:
        return mean, variance.sqrt()
    deviation = (0.5 * log_variance(given.fraction, schedule, t, s)).exp()
    return mean, torch.where(s >= 0, deviation, 0.0)


def posterior(x: Tensor, x0: Tensor, schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t = x, x0), s < t, both single timesteps. 2006.11239, equations 6 and 7."""
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    between = schedule.variance_between(t, s)
    mean = (alpha_t / alpha_s * sigma_s**2 * x + alpha_s * between * x0) / sigma_t**2
    return mean, between * (sigma_s / sigma_t) ** 2


def log_variance(fraction: Tensor, schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """The logarithm of a learned variance, for a step from t to s, both [b] or single, s < t. The shape of `fraction`.

    Nichol & Dhariwal 2102.09672, equation 15.
    """
    smallest, largest = (as_column(bound, fraction) for bound in log_variance_bounds(schedule, t, s))
    return fraction * largest + (1.0 - fraction) * smallest


def log_variance_bounds(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the smallest and largest variance of a step from t to s: q's posterior, and q's own."""
    between = schedule.variance_between(t, s)
    smallest = between * (schedule.sigma(s) / schedule.sigma(t)) ** 2
    # The last step's is 0, without a logarithm; the paper takes the previous step's.
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    floor = schedule.variance_between(one, zero) * (schedule.sigma(zero) / schedule.sigma(one)) ** 2
    smallest = torch.where(s >= 0, smallest, floor)
    # An infinite logarithm would make NaN of a fraction of exactly 0 or 1.
    tiny = torch.finfo(between.dtype).tiny
    return torch.minimum(smallest, between).clamp(min=tiny).log(), between.clamp(min=tiny).log()


def as_column(values: Tensor, like: Tensor) -> Tensor:
    """[b] → [b, 1, …] to multiply `like` [b, …]; a single number as it is."""
    return values.view(-1, *(1,) * (like.ndim - 1)) if values.ndim else values
