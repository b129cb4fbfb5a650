"""Losses between a discriminator and what it judges, as functions of its logits [b, …]; each gives [b] or a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

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
