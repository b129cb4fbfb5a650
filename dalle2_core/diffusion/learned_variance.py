"""The reverse process's variance, learned: Nichol & Dhariwal 2102.09672, section 3.1.

The network gives, besides its prediction, a fraction for every pixel, that interpolates between the logarithms of the
smallest and the largest variance that can be right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle2_core.diffusion.posterior import Posterior, as_column, log_variance, log_variance_bounds
from dalle2_core.diffusion.schedules import NoiseSchedule

# Half a step between two of 256 grey levels in [-1, 1].
_HALF_BIN = 1.0 / 255.0


@dataclass(frozen=True, slots=True)
class LearnedVariance:
    """How the network's output gives the fraction, and what its bound is of.

    constrained: see `fraction_from`. pixels: x0 are grey levels; see `variational_bound`.
    """

    constrained: bool
    pixels: bool

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output [b, 2c, …] as its prediction [b, c, …] and the fraction."""
        prediction, variance = output.chunk(2, dim=1)
        return prediction, fraction_from(variance, self.constrained)


def fraction_from(output: Tensor, constrained: bool) -> Tensor:
    """The network's output as a fraction: 0 → one half.

    constrained: in (0, 1). Else as in the paper, any number is one; those far outside are cut off, since the
    variance is their exponential and one pixel's would be the whole loss.
    """
    return output.sigmoid() if constrained else ((output + 1.0) / 2.0).clamp(-1.0, 2.0)


def variational_bound(given: Posterior, x0: Tensor, schedule: NoiseSchedule, t: Tensor, *, pixels: bool) -> Tensor:
    """Bits per dimension that each row's timestep adds to the bound, [b]. 2102.09672, equations 4 to 7.

    The mean is that of the estimated x0, whatever the network predicts. Give a detached estimate of x0 to train the
    variance alone (equation 16). pixels: x0 are grey levels of 256 in [-1, 1], and the bound's last term (t = 0) is
    their likelihood; else that of numbers known to within the smallest variance.
    """
    assert given.fraction is not None
    s = t - 1
    log_var = log_variance(given.fraction, schedule, t, s)
    true_log_var = as_column(log_variance_bounds(schedule, t, s)[0], x0)
    # q's mean minus p's: both weigh the same x_t, so only the images differ.
    weight = schedule.alpha(s) * schedule.variance_between(t, s) / schedule.sigma(t) ** 2
    apart = as_column(weight, x0) * (x0 - given.x0)
    divergence = 0.5 * (
        log_var - true_log_var - 1.0 + (true_log_var - log_var).exp() + apart.square() * (-log_var).exp()
    )
    terms = divergence.flatten(1).mean(dim=1)
    if pixels:
        likelihood = _log_likelihood(x0, given.x0, 0.5 * log_var).flatten(1).mean(dim=1)
        terms = torch.where(t == 0, -likelihood, terms)
    return terms / math.log(2.0)


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
