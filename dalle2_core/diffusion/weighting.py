"""Loss weights of timesteps, from their signal-to-noise ratio.

A weight multiplies the squared error of the network's own target. The papers state theirs for one target; the
ratio of the errors (`Parameterization.error_ratio`) carries it over to the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_core.diffusion.parameterization import Parameterization

Weighting = Callable[[Tensor, Parameterization], Tensor]


def constant(snr: Tensor, predicts: Parameterization) -> Tensor:
    """1 everywhere: the target's plain error."""
    return torch.ones_like(snr)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(snr, gamma) on the error of x0. Hang et al. 2303.09556, equation 5 and section 3.4."""

    def weight(snr: Tensor, predicts: Parameterization) -> Tensor:
        return snr.clamp(max=gamma) / predicts.error_ratio(snr)

    return weight


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1 / (k + snr)^gamma on the error of the noise. Choi et al. 2204.00227, equation 8."""

    def weight(snr: Tensor, predicts: Parameterization) -> Tensor:
        return snr / (k + snr) ** gamma / predicts.error_ratio(snr)

    return weight


WEIGHTINGS: dict[str, Weighting] = {"constant": constant, "min-snr": min_snr(), "p2": p2()}
