"""Noise schedules: the amplitudes of data and noise at each timestep.

x_t = alpha_t x_0 + sigma_t noise, for integer timesteps t = 0 … T-1 (0 is the least noisy). t = -1 stands for the
clean data: alpha = 1, sigma = 0. All preserve the variance, alpha_t² + sigma_t² = 1, but "flow": alpha_t + sigma_t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen
from dalle2_core.modules import PreciseBuffers

# A step never removes more of the variance than this, so that the last timesteps keep a trace of the data and
# every quantity stays finite, however few timesteps there are. Nichol & Dhariwal 2102.09672, section 3.2.
LARGEST_BETA = 0.999


class NoiseSchedule(PreciseBuffers):
    """alpha and sigma as functions of the integer timestep.

    They follow from the name and T, so they move with the module but are not part of its weights.
    """

    alphas: Tensor
    sigmas: Tensor

    def __init__(self, name: str = "cosine", timesteps: int = 1000, zero_terminal_snr: bool = False) -> None:
        """name: one of SCHEDULES. timesteps: T, 2 or more. zero_terminal_snr: at T-1 nothing is left of the data.

        Raises ConfigError for an unknown name or fewer timesteps.
        """
        super().__init__()
        if timesteps < 2:
            raise ConfigError(f"timesteps is {timesteps}; a noise schedule needs 2 or more")
        alphas, sigmas = chosen(SCHEDULES, name, "noise schedule")(timesteps)
        if zero_terminal_snr and float(alphas[-1]) > 0.0:
            # Lin et al. 2305.08891, algorithm 1: the last alpha becomes 0, the first one stays.
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
            sigmas = (1.0 - alphas**2).sqrt()
        # One entry more than timesteps: entry 0 is t = -1, the clean data.
        ends = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.name = name
        self.timesteps = timesteps
        self.register_buffer("alphas", torch.cat((ends[0], alphas)).float(), persistent=False)
        self.register_buffer("sigmas", torch.cat((ends[1], sigmas)).float(), persistent=False)

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing at all is left of the data at T-1, so that it cannot be read out of the noise there."""
        return float(self.alphas[-1]) == 0.0

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data's amplitude left; the shape of t, in [0, 1]."""
        return _looked_up(self.alphas, t + 1)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise; the shape of t, in [0, 1]."""
        return _looked_up(self.sigmas, t + 1)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma for timesteps [b], shaped [b, 1, …] to multiply `like` [b, …]."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.alpha(t).view(shape), self.sigma(t).view(shape)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha² / sigma²; the shape of t, for t >= 0."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def variance_between(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of q(x_t | x_s), s < t: beta, for neighbours. The shape of t and s."""
        ratio = self.alpha(t) / self.alpha(s)
        return (self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2).clamp(min=0.0)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index]; an index without dimensions would be brought to the host, which waits for the device."""
    return table.index_select(0, index.reshape(-1)).view(index.shape)


def _cosine(timesteps: int) -> Tensor:
    """Nichol & Dhariwal 2102.09672, equation 17, with s = 0.008."""
    x = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps
    alpha_bar = torch.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2
    return 1.0 - alpha_bar[1:] / alpha_bar[:-1]


def _ends(timesteps: int) -> tuple[float, float]:
    """First and last beta of Ho et al. 2006.11239, scaled so that T steps add about as much noise as 1000 do."""
    return 0.1 / timesteps, 20.0 / timesteps


def _linear(timesteps: int) -> Tensor:
    """Ho et al. 2006.11239, section 4."""
    first, last = _ends(timesteps)
    return torch.linspace(first, last, timesteps, dtype=torch.float64)


def _quadratic(timesteps: int) -> Tensor:
    """The square root of beta rises linearly between the same ends."""
    first, last = _ends(timesteps)
    return torch.linspace(math.sqrt(first), math.sqrt(last), timesteps, dtype=torch.float64) ** 2


def _sigmoid(timesteps: int) -> Tensor:
    """Beta rises along a logistic curve between the same ends."""
    first, last = _ends(timesteps)
    rise = torch.sigmoid(torch.linspace(-6.0, 6.0, timesteps, dtype=torch.float64))
    return first + (last - first) * rise


def _jsd(timesteps: int) -> Tensor:
    """Beta_t = 1 / (T - t): alpha² falls linearly. Sohl-Dickstein et al. 1503.03585, section 2.4."""
    return 1.0 / torch.linspace(timesteps, 1, timesteps, dtype=torch.float64)


def _preserving(betas: Callable[[int], Tensor]) -> Callable[[int], tuple[Tensor, Tensor]]:
    """alphas and sigmas of the steps' betas."""

    def schedule(timesteps: int) -> tuple[Tensor, Tensor]:
        alpha_bars = torch.cumprod(1.0 - betas(timesteps).clamp(max=LARGEST_BETA), dim=0)
        return alpha_bars.sqrt(), (1.0 - alpha_bars).sqrt()

    return schedule


def _flow(timesteps: int) -> tuple[Tensor, Tensor]:
    """The straight path from data to noise. Lipman et al. 2210.02747, section 4.1; Liu et al. 2209.03003."""
    sigmas = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)[1:]
    return 1.0 - sigmas, sigmas


SCHEDULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "cosine": _preserving(_cosine),
    "linear": _preserving(_linear),
    "quadratic": _preserving(_quadratic),
    "sigmoid": _preserving(_sigmoid),
    "jsd": _preserving(_jsd),
    "flow": _flow,
}
