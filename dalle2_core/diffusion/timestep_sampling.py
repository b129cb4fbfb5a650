"""How often each timestep is trained: the distribution that a training step draws its timesteps from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_core.rng import RNG, integers, normal

TimestepSampling = Callable[[int, int, RNG, torch.device], Tensor]
"""(T, rows, draws, device) → int64 [rows], each in [0, T)."""


def uniform_timesteps(timesteps: int, rows: int, draws: RNG, device: torch.device) -> Tensor:
    """All alike. Ho et al. 2006.11239, algorithm 1."""
    return integers(0, timesteps, (rows,), draws, device)


def logit_normal_timesteps(timesteps: int, rows: int, draws: RNG, device: torch.device) -> Tensor:
    """T sigmoid(z), z standard normal: those in the middle most. Esser et al. 2403.03206, equation 19."""
    drawn = torch.sigmoid(normal((rows,), draws, device)) * timesteps
    return drawn.long().clamp(max=timesteps - 1)


TIMESTEP_SAMPLINGS: dict[str, TimestepSampling] = {
    "uniform": uniform_timesteps,
    "logit-normal": logit_normal_timesteps,
}
