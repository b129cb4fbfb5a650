"""Draws by row: however a batch is cut, a row's numbers are the same; and they are the numbers they should be."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dalle2_core.rng import PerSampleRNG, coin, common_seed, derived_seed, integers, normal, uniform

CPU = torch.device("cpu")


def all_kinds(draws, rows):
    return (
        normal((rows, 3), draws, CPU),
        uniform((rows,), draws, CPU),
        integers(-2, 5, (rows, 2), draws, CPU),
        normal((2 * rows, 4), draws, CPU),  # two draws for each row
        torch.tensor(coin(0.5, draws)),
    )


@given(st.integers(0, 2**40), st.integers(0, 100), st.integers(1, 70), st.data())
def test_parts_draw_what_the_whole_draws(seed, start, rows, data):
    whole = all_kinds(PerSampleRNG(seed, start, rows, CPU), rows)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    part = all_kinds(PerSampleRNG(seed, start + first, last - first, CPU), last - first)
    for each, other in zip(whole[:3], part[:3], strict=True):
        assert torch.equal(each[first:last], other)
    assert torch.equal(whole[3][2 * first : 2 * last], part[3])
    assert torch.equal(whole[4], part[4])


def test_rows_and_draws_differ_from_each_other():
    draws = PerSampleRNG(1, 0, 500, CPU)
    drawn = torch.cat([normal((500, 3), draws, CPU), normal((500, 3), draws, CPU)]).flatten()
    assert len(drawn.unique()) > 2990
    assert not torch.equal(
        normal((9, 3), PerSampleRNG(2, 0, 9, CPU), CPU), normal((9, 3), PerSampleRNG(1, 0, 9, CPU), CPU)
    )


def test_the_distributions_are_right():
    n = 20_000
    draws = PerSampleRNG(0, 7, n, CPU)
    z = normal((n, 2), draws, CPU)
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(z.T)[0, 1].item() == pytest.approx(0, abs=0.03)
    u = uniform((n,), draws, CPU)
    assert (u < 0.25).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert u.min() >= 0
    assert u.max() < 1
    dice = integers(1, 7, (n,), draws, CPU)
    assert torch.bincount(dice, minlength=7)[1:].float().div(n).sub(1 / 6).abs().max() < 0.02
    tosses = [coin(0.3, PerSampleRNG(seed, 0, 1, CPU)) for seed in range(2000)]
    assert sum(tosses) / 2000 == pytest.approx(0.3, abs=0.05)


def test_a_generator_and_none_draw_as_torch_does():
    expected = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(normal((4, 3), torch.Generator().manual_seed(5), CPU), expected)
    torch.manual_seed(5)
    assert torch.equal(normal((4, 3), None, CPU), expected)


def test_every_kind_of_draw_comes_from_the_generator_that_is_given():
    def drawn(draws):
        return (
            uniform((3, 2), draws, CPU),
            integers(-5, 500, (3, 2), draws, CPU),
            torch.tensor(common_seed(draws)),
            normal((3, 2), draws, CPU, torch.float64),
        )

    def expected(generator):
        return (
            torch.rand((3, 2), generator=generator),
            torch.randint(-5, 500, (3, 2), generator=generator),
            torch.randint(2**62, (), generator=generator),
            torch.randn((3, 2), generator=generator, dtype=torch.float64),
        )

    for ours, theirs in zip(
        drawn(torch.Generator().manual_seed(5)), expected(torch.Generator().manual_seed(5)), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    torch.manual_seed(5)
    ours = drawn(None)
    torch.manual_seed(5)
    assert all(map(torch.equal, ours, expected(None)))
    tossed = [coin(0.3, torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert tossed == [float(torch.rand((), generator=torch.Generator().manual_seed(seed))) < 0.3 for seed in range(50)]
    assert coin(1.0, None)
    assert not coin(0.0, None)


def test_rows_share_a_seed_in_a_wide_range():
    seeds = [common_seed(PerSampleRNG(seed, 0, 3, CPU)) for seed in range(50)]
    assert seeds == [common_seed(PerSampleRNG(seed, 17, 5, CPU)) for seed in range(50)]
    assert len(set(seeds)) == 50
    assert 2**60 < max(seeds) < 2**62


def test_everything_is_drawn_where_it_is_asked_for():
    meta = torch.device("meta")
    for drawn in (normal((3,), None, meta), uniform((3,), None, meta), integers(0, 2, (3,), None, meta)):
        assert drawn.device == meta


def test_seeds_depend_on_every_part():
    assert (
        len({derived_seed(0, 1, "a"), derived_seed(1, 0, "a"), derived_seed(0, 1, "b"), derived_seed(0, 11, "a")}) == 4
    )
    assert 0 <= derived_seed("x") < 2**63
