"""A task whose answer is known: each text has three image modes, and the mean of them is no image.

A text is a unit vector t = B z, its modes the unit vectors Q_k z with chances 0.5, 0.3 and 0.2, an image one of them
with a little noise, at norm 1. B and the Q_k map into random directions, so the modes of a text lie about at right
angles, and what minimises the squared error lies between them, where there is never an image. Each mode is linear in
the text: a regression finds the best mean there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHANCES = (0.5, 0.3, 0.2)
_LATENT = 6
NOISE = 0.25


@dataclass(frozen=True, slots=True)
class Mixture:
    """Rows of the task. text, image: [n, d], norm 1. modes: [n, 3, d], norm 1. drawn: [n], the mode of the image."""

    text: Tensor
    image: Tensor
    modes: Tensor
    drawn: Tensor

    def rows(self, start: int, stop: int) -> Mixture:
        """Some of them."""
        return Mixture(self.text[start:stop], self.image[start:stop], self.modes[start:stop], self.drawn[start:stop])


def make(n: int, dim: int, seed: int) -> Mixture:
    """n rows of one task; the seed decides the task and the rows."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws)

    z = F.normalize(normal(n, _LATENT), dim=1)
    text = z @ torch.linalg.qr(normal(dim, _LATENT))[0].T
    modes = torch.stack([z @ torch.linalg.qr(normal(dim, _LATENT))[0].T for _ in CHANCES], dim=1)
    drawn = torch.multinomial(torch.tensor(CHANCES), n, replacement=True, generator=draws)
    image = modes[torch.arange(n), drawn] + NOISE * normal(n, dim) / dim**0.5
    return Mixture(text, F.normalize(image, dim=1), modes, drawn)
