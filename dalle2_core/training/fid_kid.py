"""How far apart two sets of images are, by features of each: Fréchet and kernel distance.

Shapes: n images, d features. Any network's features will do; numbers are comparable among the same features only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle2_core.errors import ShapeError


def frechet_distance(made: Tensor, true: Tensor) -> float:
    """Of the Gaussians with the means and covariances of two sets of features [n, d] and [m, d]; 0 or more.

    |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½). Heusel et al. 1706.08500, equation 6: the FID, where the features are those
    of Inception. It falls with n: compare equal numbers of images, many more than d. Raises ShapeError.
    """
    made, true = _checked(made, true)
    apart = (made.mean(dim=0) - true.mean(dim=0)).square().sum()
    first, second = torch.cov(made.T).reshape(made.shape[1], -1), torch.cov(true.T).reshape(true.shape[1], -1)
    # The product's root has the trace of that of a symmetric matrix with the same eigenvalues.
    root = _root(first)
    between = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0.0).sqrt().sum()
    return max(0.0, float(apart + first.trace() + second.trace() - 2.0 * between))


def kernel_distance(made: Tensor, true: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features [n, d] and [m, d] under (xᵀy / d + 1)³; about 0 at best.

    Unbiased, so that it may be below 0 and does not depend on how many images there are. Bińkowski et al. 1801.01401,
    section 4: the KID, where the features are those of Inception. Raises ShapeError.
    """
    made, true = _checked(made, true)

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T / one.shape[1] + 1.0) ** 3

    def within(rows: Tensor) -> Tensor:
        all_pairs = kernel(rows, rows)
        return (all_pairs.sum() - all_pairs.trace()) / (len(rows) * (len(rows) - 1))

    return float(within(made) + within(true) - 2.0 * kernel(made, true).mean())


def _checked(made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Both in double precision, on the CPU."""
    if made.ndim != 2 or true.ndim != 2 or made.shape[1] != true.shape[1] or min(len(made), len(true)) < 2:
        raise ShapeError(
            f"features {tuple(made.shape)} and {tuple(true.shape)} must be [n, d] and [m, d], with two rows or more"
        )
    made, true = made.detach().cpu().double(), true.detach().cpu().double()
    if not bool(torch.isfinite(made).all() and torch.isfinite(true).all()):
        raise ShapeError("features hold NaN or infinity")
    return made, true


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root
