"""The reverse process's variance, learned: Nichol & Dhariwal 2102.09672, section 3.1.

The network gives, besides its prediction, a fraction for every pixel, that interpolates between the logarithms of the
smallest and the largest variance that can be right.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dalle2_core.diffusion.samplers import posterior, variance_between
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.rng import RNG, normal

# Half a step between two of 256 grey levels in [-1, 1].
_HALF_BIN = 1.0 / 255.0


class Estimate(NamedTuple):
    """x0: [b, …]. fraction: of the variance's logarithm, the shape of x0; None where the variance is not learned."""

    x0: Tensor
    fraction: Tensor | None = None


def fraction_from(output: Tensor, constrained: bool) -> Tensor:
    """The network's output as a fraction: 0 → one half.

    constrained: in (0, 1). Else as in the paper, any number is one; those far outside are cut off, since the
    variance is their exponential and one pixel's would be the whole loss.
    """
    return output.sigmoid() if constrained else ((output + 1.0) / 2.0).clamp(-1.0, 2.0)


def log_variance(fraction: Tensor, schedule: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """Equation 15, for a step from t to s, both [b] or single, s < t. The shape of `fraction`."""
    smallest, largest = (_shaped(bound, fraction) for bound in _bounds(schedule, t, s))
    return fraction * largest + (1.0 - fraction) * smallest


def learned_step(x: Tensor, estimate: Estimate, schedule: NoiseSchedule, t: Tensor, s: Tensor, draws: RNG) -> Tensor:
    """x_s drawn from the reverse process's normal distribution, s < t; the last step, to s = -1, draws nothing."""
    assert estimate.fraction is not None
    mean, _ = posterior(x, estimate.x0, schedule, t, s)
    deviation = (0.5 * log_variance(estimate.fraction, schedule, t, s)).exp()
    return torch.where(s >= 0, mean + deviation * normal(x.shape, draws, x.device, x.dtype), mean)


def variational_bound(estimate: Estimate, x0: Tensor, schedule: NoiseSchedule, t: Tensor, *, pixels: bool) -> Tensor:
    """Bits per dimension that each row's timestep adds to the bound, [b]. 2102.09672, equations 4 to 7.

    The mean is that of the estimated x0, whatever the network predicts. Give a detached estimate of x0 to train the
    variance alone (equation 16). pixels: x0 are grey levels of 256 in [-1, 1], and the bound's last term (t = 0) is
    their likelihood; else that of numbers known to within the smallest variance.
    """
    assert estimate.fraction is not None
    s = t - 1
    log_var = log_variance(estimate.fraction, schedule, t, s)
    true_log_var = _shaped(_bounds(schedule, t, s)[0], x0)
    # q's mean minus p's: both weigh the same x_t, so only the images differ.
    weight = schedule.alpha(s) * variance_between(schedule, t, s) / schedule.sigma(t) ** 2
    apart = _shaped(weight, x0) * (x0 - estimate.x0)
    divergence = 0.5 * (
        log_var - true_log_var - 1.0 + (true_log_var - log_var).exp() + apart.square() * (-log_var).exp()
    )
    terms = divergence.flatten(1).mean(dim=1)
    if pixels:
        likelihood = _log_likelihood(x0, estimate.x0, 0.5 * log_var).flatten(1).mean(dim=1)
        terms = torch.where(t == 0, -likelihood, terms)
    return terms / math.log(2.0)


def _bounds(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the smallest and largest variance of a step from t to s: q's posterior, and q's own."""
    between = variance_between(schedule, t, s)
    smallest = between * (schedule.sigma(s) / schedule.sigma(t)) ** 2
    # The last step's is 0, whose logarithm is no number; the paper takes the one before's.
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    floor = variance_between(schedule, one, zero) * (schedule.sigma(zero) / schedule.sigma(one)) ** 2
    smallest = torch.where(s >= 0, smallest, floor)
    # An infinite logarithm would make NaN of a fraction of exactly 0 or 1.
    tiny = torch.finfo(between.dtype).tiny
    return torch.minimum(smallest, between).clamp(min=tiny).log(), between.clamp(min=tiny).log()


def _log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Logarithm of the probability that a normal number falls into the grey level of x. 2006.11239, eq. 13."""
    scale = (-log_deviation).exp()
    above = torch.special.ndtr(scale * (x - mean + _HALF_BIN))
    below = torch.special.ndtr(scale * (x - mean - _HALF_BIN))
    # The darkest and the brightest level reach to infinity.
    probability = torch.where(
        x <= -1.0 + _HALF_BIN, above, torch.where(x >= 1.0 - _HALF_BIN, 1.0 - below, above - below)
    )
    return probability.clamp(min=1e-12).log()


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """[b] → [b, 1, …]; a single number as it is."""
    return values.view(-1, *(1,) * (like.ndim - 1)) if values.ndim else values
