"""Distances between sets of features, against closed forms and another way to compute them."""

import numpy as np
import pytest
import torch

from dalle2_core.errors import ShapeError
from dalle2_core.training.fid_kid import frechet_distance, kernel_distance


def features(n, d, seed, mean=0.0, scale=1.0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draws) * scale + mean


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances: |μ1 - μ2|² + Σ (σ1 - σ2)²."""
    one, other = features(200_000, 3, 0), features(200_000, 3, 1, mean=0.5, scale=2.0)
    assert frechet_distance(one, other) == pytest.approx(3 * 0.25 + 3 * 1.0, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_is_the_formula_with_a_matrix_root():
    from scipy.linalg import sqrtm

    draws = np.random.default_rng(0)
    one, other = draws.normal(size=(50, 6)) @ draws.normal(size=(6, 6)), draws.normal(size=(40, 6)) + 0.3
    first, second = np.cov(one.T), np.cov(other.T)
    root = sqrtm(first @ second).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first + second - 2 * root)
    found = frechet_distance(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.from_numpy(other), torch.from_numpy(one)) == pytest.approx(found, rel=1e-6)


def test_kernel_distance_is_the_mean_over_different_pairs():
    one, other = features(7, 4, 0).double(), features(5, 4, 1, mean=0.4).double()

    def kernel(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    within = [
        np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])
        for rows in (one, other)
    ]
    between = np.mean([kernel(x, y) for x in one for y in other])
    assert kernel_distance(one, other) == pytest.approx(within[0] + within[1] - 2 * between, rel=1e-6)


def test_kernel_distance_does_not_depend_on_how_many_there_are():
    found = [kernel_distance(features(40, 4, seed), features(40, 4, seed + 1000)) for seed in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_features_that_cannot_be_compared_are_refused():
    with pytest.raises(ShapeError, match="two rows or more"):
        frechet_distance(features(1, 4, 0), features(5, 4, 0))
    with pytest.raises(ShapeError, match=r"features \(5, 4\) and \(5, 3\)"):
        kernel_distance(features(5, 4, 0), features(5, 3, 0))
    with pytest.raises(ShapeError, match="NaN"):
        frechet_distance(features(5, 4, 0) * float("nan"), features(5, 4, 0))
