"""Normal draws from one generator for a whole batch, or from one for each of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# One generator for all rows, in their order; or one for each row, whose draws then do not depend on the other rows;
# or None for torch's global one.
Draws = torch.Generator | Sequence[torch.Generator] | None


def normal_like(like: Tensor, generator: Draws) -> Tensor:
    """Standard normal numbers of the shape [b, …], dtype and device of `like`."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    assert len(generator) == len(like)
    rows = [torch.randn(like.shape[1:], generator=it, device=like.device, dtype=like.dtype) for it in generator]
    return torch.stack(rows)


def generators_for(seeds: Tensor, device: torch.device) -> list[torch.Generator]:
    """A generator on `device` for each of the seeds [b]."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
