"""How often each timestep is drawn, held against the density that the paper gives."""

import math

import pytest
import torch

from dalle2_core.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS
from dalle2_core.rng import PerSampleRNG

DRAWN, T = 200_000, 20


def share_below(name, x):
    """The distribution function at x in (0, 1)."""
    return x if name == "uniform" else 0.5 * (1 + math.erf(math.log(x / (1 - x)) / math.sqrt(2)))


@pytest.mark.parametrize("name", TIMESTEP_SAMPLINGS)
def test_shares_are_those_of_the_density(name):
    drawn = TIMESTEP_SAMPLINGS[name](T, DRAWN, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert drawn.dtype == torch.int64
    assert drawn.shape == (DRAWN,)
    assert (int(drawn.min()), int(drawn.max())) == (0, T - 1)
    for edge in range(1, T):
        assert float((drawn < edge).float().mean()) == pytest.approx(share_below(name, edge / T), abs=0.005)


@pytest.mark.parametrize("name", TIMESTEP_SAMPLINGS)
def test_a_row_draws_the_same_in_any_batch(name):
    cpu = torch.device("cpu")

    def drawn(start, rows):
        return TIMESTEP_SAMPLINGS[name](1000, rows, PerSampleRNG(7, start, rows, cpu), cpu).tolist()

    assert drawn(3, 20)[15:] == drawn(18, 5)
