"""Principal codes against scikit-learn's components, and buckets by hand."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dalle2_core.errors import ShapeError
from dalle2_core.priors.pca_codes import PCAQuantizer

DRAW = torch.Generator().manual_seed(0)
MIXED = torch.linalg.qr(torch.randn(6, 6, generator=DRAW))[0]
ROWS = torch.randn(300, 6, generator=DRAW) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2]) @ MIXED + 4


def fitted(rows=ROWS, codes=3, buckets=16):
    it = PCAQuantizer(rows.shape[1], codes, buckets)
    it.fit(rows)
    return it


def test_components_are_those_of_scikit_learn():
    it, theirs = fitted(), PCA(3).fit(ROWS.double().numpy())
    signs = np.sign((it.components.double().numpy() * theirs.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(it.components.numpy(), signs * theirs.components_, atol=1e-5)
    np.testing.assert_allclose(it.mean.numpy(), theirs.mean_, atol=1e-5)
    assert float(it.kept_variance) == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-5)
    assert float(fitted(codes=6).kept_variance) == pytest.approx(1.0)


def test_the_largest_entry_of_a_component_is_positive():
    for rows in (ROWS, -ROWS):
        components = fitted(rows, 6).components
        assert bool((components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all())


def test_buckets_of_equal_width_cover_what_was_seen():
    it = fitted()
    places = (ROWS - it.mean) @ it.components.T
    low, high = places.amin(0), places.amax(0)
    torch.testing.assert_close(it.low, low, atol=1e-4, rtol=0)
    torch.testing.assert_close(it.width, (high - low) / 16, atol=1e-5, rtol=0)
    codes = it.encode(ROWS)
    assert codes.dtype == torch.int64
    torch.testing.assert_close(codes, ((places - low) / (high - low) * 16).floor().clamp(0, 15).long())
    assert codes.min() == 0
    assert codes.max() == 15


def test_what_lies_outside_gets_the_outermost_bucket():
    it = fitted()
    far = 1000 * it.components[0]
    assert int(it.encode(it.mean + far[None])[0, 0]) == 15
    assert int(it.encode(it.mean - far[None])[0, 0]) == 0


def test_a_code_is_the_middle_of_its_bucket():
    it = fitted(codes=6, buckets=64)
    back = it.decode(it.encode(ROWS))
    apart = (back - ROWS) @ it.components.T
    assert bool((apart.abs() <= it.width / 2 + 1e-4).all())
    codes = torch.tensor([[0] * 6, [63] * 6, list(range(6))])
    assert torch.equal(it.encode(it.decode(codes)), codes)


def test_a_component_without_variance_is_one_bucket_in_the_middle():
    rows = ROWS.clone()
    rows[:, 3:] = 0
    it = fitted(rows, 6, 16)
    codes = it.encode(rows)
    assert codes[:, :3].unique().numel() == 16
    assert bool(((codes[:, 3:] == 7) | (codes[:, 3:] == 8)).all())
    torch.testing.assert_close(it.width[3:], (1e-3 * 16 * it.width.max() / 16).expand(3))
    still = fitted(torch.ones(5, 6), 6, 16)
    assert bool(torch.isfinite(still.decode(still.encode(torch.ones(5, 6)))).all())
    torch.testing.assert_close(still.width, torch.full((6,), 1e-12 / 16))
    assert float(still.kept_variance) == 0


def test_before_it_is_fitted_a_unit_cube_is_cut():
    it = PCAQuantizer(5, 2, 4)
    assert it.encode(torch.tensor([[-1.0, -0.4, 9, 9, 9], [0.6, 0.1, 9, 9, 9]])).tolist() == [[0, 1], [3, 2]]
    assert it.decode(torch.tensor([[0, 3]])).tolist() == [[-0.75, 0.75, 0, 0, 0]]


def test_two_rows_have_a_component_and_one_has_none():
    it = fitted(ROWS[:2], 1, 2)
    assert float(it.kept_variance) == pytest.approx(1.0)
    assert sorted(it.encode(ROWS[:2])[:, 0].tolist()) == [0, 1]
    with pytest.raises(ShapeError, match="1 rows have no principal components; give 2 or more"):
        fitted(ROWS[:1])
