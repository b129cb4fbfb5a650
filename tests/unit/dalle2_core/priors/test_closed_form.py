"""Closed-form priors against another solver."""

import numpy as np
import pytest
import sklearn.linear_model
import torch
from torch.nn import functional as F

from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.priors.closed_form import BASELINES, MeanImage, Ridge, TextAsImage


def rows(n=60, d=5, out=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(d, out, generator=draw, dtype=torch.float64) + 2.0
    return x, y + 0.3 * torch.randn(n, out, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 40.0])
def test_ridge_equals_numpys_least_squares_on_augmented_rows(penalty):
    """|Y - XW - b|² + penalty |W|² is least squares with sqrt(penalty) I below X, the intercept's column left out."""
    x, y = rows()
    above = np.hstack([x.numpy(), np.ones((60, 1))])
    below = np.hstack([np.sqrt(penalty) * np.eye(5), np.zeros((5, 1))])
    solution, *_ = np.linalg.lstsq(np.vstack([above, below]), np.vstack([y.numpy(), np.zeros((5, 4))]), rcond=None)
    fitted = Ridge(penalty).fit(x, y)
    np.testing.assert_allclose(fitted.weight.numpy(), solution[:5], atol=1e-9)
    np.testing.assert_allclose(fitted.intercept.numpy(), solution[5], atol=1e-9)
    expected = F.normalize(torch.from_numpy(above @ solution), dim=-1)
    torch.testing.assert_close(fitted.predict(x), expected)


@pytest.mark.parametrize("penalty", [1e-3, 2.0, 100.0])
def test_ridge_equals_scikit_learns(penalty):
    x, y = rows(n=200, d=30, out=12)
    unseen, _ = rows(n=20, d=30, out=12, seed=1)
    theirs = sklearn.linear_model.Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    ours = Ridge(penalty).fit(x, y)
    np.testing.assert_allclose(ours.sample(unseen, normalize=False).numpy(), theirs.predict(unseen.numpy()), atol=1e-9)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_.T, atol=1e-9)


def test_ridge_chooses_a_penalty_that_fits_the_noise():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 8, generator=draw)

    def task(noise, n=60):
        x = torch.randn(n, 40, generator=draw)
        return x, x @ weight + noise * torch.randn(n, 8, generator=draw)

    assert Ridge().fit(*task(0.0)).chosen < Ridge().fit(*task(30.0)).chosen
    x, y = task(10.0)
    unseen_x, unseen_y = task(0.0, 500)
    chosen, none = (
        F.cosine_similarity(it.fit(x, y).predict(unseen_x), unseen_y).mean() for it in (Ridge(), Ridge(0.0))
    )
    assert chosen > none


def test_ridge_survives_fewer_rows_than_dimensions():
    x, y = rows(n=4, d=30)
    assert bool(torch.isfinite(Ridge(0.0).fit(x, y).predict(x)).all())


def test_mean_and_text():
    text, image = torch.randn(2, 7, 4)
    torch.testing.assert_close(TextAsImage().fit(text, image).predict(text), F.normalize(text, dim=-1))
    torch.testing.assert_close(
        MeanImage().fit(text, image).predict(text[:3]), F.normalize(image.mean(0), dim=-1).expand(3, -1)
    )


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_predictions_are_unit_vectors_of_the_texts_dtype(name):
    text, image = torch.randn(2, 30, 6)
    before = text.clone()
    predicted = BASELINES[name]().fit(text, image).predict(text)
    torch.testing.assert_close(predicted.norm(dim=1), torch.ones(30))
    assert predicted.dtype == torch.float32
    assert torch.equal(text, before)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="0 or more"):
        Ridge(-1.0)
    with pytest.raises(ShapeError, match="3 text rows and 2 image rows"):
        Ridge().fit(torch.randn(3, 2), torch.randn(2, 2))
