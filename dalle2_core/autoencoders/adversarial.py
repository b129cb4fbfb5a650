"""Losses between a discriminator and what it judges, as functions of its logits [b, …]; and how much they weigh."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.collectives import Collectives

# Esser et al. 2012.09841, equation 7, and the bound of their code.
_DELTA, _HIGHEST_WEIGHT = 1e-6, 1e4


def hinge_judge(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator lowers: real above 1, fake below -1. Lim & Ye 1705.02894."""
    return F.relu(1 - real).flatten(1).mean(dim=1) + F.relu(1 + fake).flatten(1).mean(dim=1)


def logistic_judge(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(real) - log(1 - sigmoid(fake)). Goodfellow et al. 1406.2661."""
    return F.softplus(-real).flatten(1).mean(dim=1) + F.softplus(fake).flatten(1).mean(dim=1)


def hinge_fool(fake: Tensor) -> Tensor:
    """What a generator lowers against the hinge."""
    return -fake.flatten(1).mean(dim=1)


def logistic_fool(fake: Tensor) -> Tensor:
    """-log sigmoid(fake)."""
    return F.softplus(-fake).flatten(1).mean(dim=1)


def gradient_penalty(judge: Callable[[Tensor], Tensor], images: Tensor, weight: float = 10.0) -> Tensor:
    """weight (|∇ judge| - 1)² at each of the images. After Gulrajani et al. 1704.00028, equation 3."""
    images = images.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(judge(images).sum(), images, create_graph=True)
    steepness: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return weight * (steepness - 1).square()


def adaptive_weight(of_reconstruction: Tensor, of_fooling: Tensor) -> Tensor:
    """The fooling loss's weight, from both losses' gradients in the decoder's last layer. 2012.09841, equation 7."""
    likeness: Tensor = torch.linalg.vector_norm(of_reconstruction)
    fooling: Tensor = torch.linalg.vector_norm(of_fooling)
    return (likeness / (fooling + _DELTA)).clamp(max=_HIGHEST_WEIGHT)


class Balance(nn.Module):
    """The weight of fooling against likeness: measured in each step, applied in the next.

    Gradients add up over parts of a batch and over processes, their quotient does not: so it is taken at the end of a
    step, by `settle`. 0 until the first.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(()))
        self._slopes: tuple[Tensor, Tensor] | None = None

    def measure(self, likeness: Tensor, fooling: Tensor, last: Tensor, rows: int) -> None:
        """Add this part's gradients in `last`, the decoder's last layer. Both losses are means over `rows` rows."""
        slopes = [torch.autograd.grad(it, last, retain_graph=True)[0].float() * rows for it in (likeness, fooling)]
        before = self._slopes or (torch.zeros_like(slopes[0]), torch.zeros_like(slopes[1]))
        self._slopes = before[0] + slopes[0], before[1] + slopes[1]

    @torch.no_grad()
    def after_step(self, together: Collectives) -> None:
        """Take the quotient of what was measured since the last call, by all processes."""
        if self._slopes is not None:
            likeness, fooling = (together.total(it) for it in self._slopes)
            self.weight.copy_(adaptive_weight(likeness, fooling))
            self._slopes = None
