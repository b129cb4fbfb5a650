"""The simplest batch that the training loop takes."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of x."""

    x: torch.Tensor

    def __len__(self):
        return len(self.x)

    def to(self, device):
        return Rows(self.x.to(device))

    def part(self, start, stop):
        return Rows(self.x[start:stop])
