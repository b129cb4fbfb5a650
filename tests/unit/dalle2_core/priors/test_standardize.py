"""Scaling is standardising: against numpy, and back."""

import numpy as np
import torch

from dalle2_core.priors.standardize import Standardizer

ROWS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1, 30.0]) + 3


def test_until_it_is_fitted_it_multiplies():
    scaling = Standardizer(4, 2.5)
    x = ROWS.clone()
    torch.testing.assert_close(scaling(x), 2.5 * ROWS)
    assert torch.equal(x, ROWS)
    torch.testing.assert_close(scaling.inverse(scaling(x)), ROWS)
    assert {name: tuple(it.shape) for name, it in scaling.state_dict().items()} == {"shift": (4,), "scale": (4,)}


def test_fitted_rows_have_zero_mean_and_unit_variance():
    scaling = Standardizer(4, 1.0)
    scaling.fit(ROWS)
    rows = ROWS.double().numpy()
    expected = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(scaling(ROWS).numpy(), expected, atol=1e-4)
    torch.testing.assert_close(scaling.inverse(scaling(ROWS)), ROWS, atol=1e-4, rtol=1e-5)


def test_a_few_rows_are_taken_as_all_there_are():
    scaling = Standardizer(2, 1.0)
    scaling.fit(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    torch.testing.assert_close(scaling(torch.tensor([[0.0, 1.0]])), torch.tensor([[-1.0, -1.0]]))


def test_a_dimension_that_never_varies_is_only_centred():
    rows = ROWS.clone()
    rows[:, 1] = 7.0
    rows[::2, 1] += 1e-6
    scaling = Standardizer(4, 1.0)
    scaling.fit(rows)
    assert float(scaling.scale[1]) < 1001 / float(rows.std(0, correction=0).max())
    assert float(scaling(rows)[:, 1].abs().max()) < 1e-3
    scaling.fit(torch.full((5, 4), 2.0))
    assert bool(torch.isfinite(scaling.scale).all())
    assert float(scaling(torch.full((5, 4), 2.0)).abs().max()) == 0


def test_the_floor_is_a_thousandth_of_the_largest_deviation_however_small_all_are():
    for unit in (1.0, 1e-4):
        rows = ROWS[:, [0, 0, 0, 0]] * torch.tensor([1.0, 0.01, 0.002, 1e-5]) * unit
        scaling = Standardizer(4, 1.0)
        scaling.fit(rows)
        deviation = rows.double().std(0, correction=0)
        floor = 1e-3 * deviation.max()
        torch.testing.assert_close(scaling.scale.double(), 1 / deviation.clamp(min=float(floor)), rtol=1e-4, atol=0)
    nothing = Standardizer(4, 1.0)
    nothing.fit(torch.zeros(5, 4))
    torch.testing.assert_close(nothing.scale, torch.full((4,), 1e11))
