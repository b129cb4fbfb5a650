"""Standardize embeddings for the network: about zero mean and unit variance in each dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle2_core.modules import PreciseBuffers


class Standardizer(PreciseBuffers):
    """(x - shift) * scale, for each dimension. Shift and scale are saved with the weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int, scale: float) -> None:
        """scale: sqrt(dim) gives the entries of a unit vector unit variance."""
        super().__init__()
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """A new tensor; x [b, dim] stays as it is."""
        return (x - self.shift) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x / self.scale + self.shift

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Take the mean and standard deviation of `rows` [n, dim]. A dimension that never varies is only centred."""
        deviation = rows.std(dim=0, correction=0)
        self.shift.copy_(rows.mean(dim=0))
        # The floor keeps a dead dimension's rounding errors from being blown up into noise.
        self.scale.copy_(1.0 / deviation.clamp(min=1e-3 * float(deviation.max().clamp(min=1e-8))))
