"""Schedules and parameterizations: what holds for every number of timesteps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.samplers import timesteps_for
from dalle2_core.diffusion.schedules import SCHEDULES, NoiseSchedule
from dalle2_core.diffusion.weighting import WEIGHTINGS, constant, min_snr, p2
from dalle2_core.errors import ConfigError

PRESERVING = sorted(set(SCHEDULES) - {"flow"})
names = st.sampled_from(PRESERVING)
lengths = st.integers(2, 1000)
fast = settings(max_examples=60, deadline=None)


@fast
@given(names, lengths)
def test_variance_is_preserved_and_snr_falls(name, timesteps):
    schedule = NoiseSchedule(name, timesteps)
    t = torch.arange(timesteps)
    alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(timesteps, dtype=torch.float64), atol=1e-6, rtol=0)
    snr = schedule.snr(t)
    assert bool(torch.isfinite(snr).all())
    assert bool((alpha > 0).all())
    assert bool((sigma > 0).all())
    assert bool((snr[1:] < snr[:-1]).all())


@fast
@given(names, lengths)
def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_beginning_as_it_was(name, timesteps):
    plain, zero = NoiseSchedule(name, timesteps), NoiseSchedule(name, timesteps, zero_terminal_snr=True)
    assert float(zero.alphas[-1]) == 0.0
    assert float(zero.sigmas[-1]) == 1.0
    assert zero.ends_in_noise
    assert not plain.ends_in_noise
    torch.testing.assert_close(zero.alphas[:2], plain.alphas[:2])
    torch.testing.assert_close(zero.alphas**2 + zero.sigmas**2, torch.ones(timesteps + 1), atol=1e-6, rtol=0)
    assert bool((zero.alphas[1:] < zero.alphas[:-1]).all())


@fast
@given(lengths, st.booleans())
def test_flow_is_straight(timesteps, zero_terminal_snr):
    schedule = NoiseSchedule("flow", timesteps, zero_terminal_snr)
    torch.testing.assert_close(schedule.alphas + schedule.sigmas, torch.ones(timesteps + 1))
    torch.testing.assert_close(schedule.sigmas.diff(), torch.full((timesteps,), 1 / timesteps), atol=1e-6, rtol=0)
    assert schedule.ends_in_noise


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("timesteps", [2, 3, 5, 10, 20, 21, 1000])
def test_everything_is_finite_however_few_the_timesteps(name, timesteps):
    t = torch.arange(timesteps)
    for zero_terminal_snr in (False, True):
        schedule = NoiseSchedule(name, timesteps, zero_terminal_snr)
        for weighting in WEIGHTINGS.values():
            for predicts in PARAMETERIZATIONS.values():
                if not (schedule.ends_in_noise and predicts.name == "noise"):
                    assert bool(torch.isfinite(weighting(schedule.snr(t), predicts)).all())


@pytest.mark.parametrize("name", ["cosine", "linear", "quadratic", "sigmoid"])
def test_a_long_schedule_starts_clean_and_ends_in_noise(name):
    schedule = NoiseSchedule(name, 1000)
    assert float(schedule.alpha(torch.tensor(0))) > 0.999
    assert float(schedule.alpha(torch.tensor(999))) < 0.04


def test_linear_is_the_one_of_the_ddpm_paper():
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    schedule = NoiseSchedule("linear", 1000)
    torch.testing.assert_close(schedule.alpha(torch.arange(1000)), alpha_bar.sqrt().float())


def betas_by_hand(name, timesteps):
    steps = np.arange(timesteps)
    along = steps / (timesteps - 1)
    first, last = 0.1 / timesteps, 20 / timesteps
    if name == "cosine":
        bars = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        return 1 - bars[1:] / bars[:-1]
    return {
        "linear": first + (last - first) * along,
        "quadratic": (np.sqrt(first) + (np.sqrt(last) - np.sqrt(first)) * along) ** 2,
        "sigmoid": first + (last - first) / (1 + np.exp(6 - 12 * along)),
        "jsd": 1 / (timesteps - steps),
    }[name]


@pytest.mark.parametrize("timesteps", [2, 50, 1000])
@pytest.mark.parametrize("name", PRESERVING)
def test_the_numbers_are_those_of_the_formula_in_double_precision(name, timesteps):
    bars = np.cumprod(1 - np.minimum(betas_by_hand(name, timesteps), 0.999))
    schedule = NoiseSchedule(name, timesteps)
    assert schedule.name == name
    assert schedule.timesteps == timesteps
    assert schedule.alphas.dtype == schedule.sigmas.dtype == torch.float32
    for ours, exact in ((schedule.alphas, np.sqrt(bars)), (schedule.sigmas, np.sqrt(1 - bars))):
        np.testing.assert_allclose(ours[1:].double().numpy(), exact, rtol=1.2e-7, atol=0)


def test_timesteps_are_shaped_to_multiply_their_rows():
    schedule, t = NoiseSchedule("cosine", 10), torch.tensor([0, 9])
    for shape in ((2, 3), (2, 3, 4, 4)):
        alpha, sigma = schedule.at(t, like=torch.zeros(shape))
        assert alpha.shape == sigma.shape == (2, *[1] * (len(shape) - 1))
        assert torch.equal(alpha.flatten(), schedule.alphas[[1, 10]])
        assert torch.equal(sigma.flatten(), schedule.sigmas[[1, 10]])


def test_the_clean_data_has_its_own_place():
    schedule = NoiseSchedule("cosine", 10)
    clean = torch.tensor(-1)
    assert float(schedule.alpha(clean)) == 1.0
    assert float(schedule.sigma(clean)) == 0.0


def test_a_schedule_is_no_part_of_the_weights():
    assert NoiseSchedule("cosine", 10).state_dict() == {}


def test_unknown_names_and_lengths_are_refused():
    with pytest.raises(ConfigError, match="no noise schedule 'cosin'; did you mean cosine"):
        NoiseSchedule("cosin", 10)
    with pytest.raises(ConfigError, match="needs 2 or more"):
        NoiseSchedule("cosine", 1)


@fast
@given(
    st.sampled_from(sorted(SCHEDULES)),
    lengths,
    st.sampled_from(sorted(PARAMETERIZATIONS)),
    st.integers(0, 2**31),
    st.data(),
)
def test_x0_can_be_read_out_of_its_own_target(name, timesteps, predicts, seed, data):
    schedule = NoiseSchedule(name, timesteps).double()
    t = torch.tensor([data.draw(st.integers(0, timesteps - 1))])
    alpha, sigma = schedule.at(t, like=torch.zeros(1, 8))
    if float(alpha) < 1e-3 and predicts == "noise":
        return  # Reading x0 out of pure noise is a division by about zero: finite, but no round trip.
    draw = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 1, 8, generator=draw, dtype=torch.float64)
    meaning = PARAMETERIZATIONS[predicts]
    back = meaning.to_x0(meaning.target(x0, noise, alpha, sigma), alpha * x0 + sigma * noise, alpha, sigma)
    torch.testing.assert_close(back, x0, atol=1e-4, rtol=1e-4)


@fast
@given(st.sampled_from(sorted(PARAMETERIZATIONS)), st.floats(0.05, 0.95))
def test_error_ratio_is_that_of_the_errors(predicts, alpha_bar):
    meaning = PARAMETERIZATIONS[predicts]
    alpha = torch.tensor(alpha_bar, dtype=torch.float64).sqrt()
    sigma = (1 - alpha**2).sqrt()
    x_t, output, error = torch.tensor([0.3, -0.7, 0.01], dtype=torch.float64)
    moved = meaning.to_x0(output + error, x_t, alpha, sigma) - meaning.to_x0(output, x_t, alpha, sigma)
    torch.testing.assert_close(error**2 / moved**2, meaning.error_ratio((alpha / sigma) ** 2))


@fast
@given(st.floats(1e-3, 1e3))
def test_weights_are_those_of_the_papers_for_every_target(value):
    snr = torch.tensor([value], dtype=torch.float64)
    # What an error of the target is, as an error of x0: 1, alpha²/sigma², 1 / sigma² …
    of_x0 = {"x0": 1.0, "noise": value, "v": 1 + value, "flow": (1 + value**0.5) ** 2}
    for name, ratio in of_x0.items():
        predicts = PARAMETERIZATIONS[name]
        assert float(constant(snr, predicts)) == 1.0
        assert float(min_snr()(snr, predicts)) == pytest.approx(min(value, 5) / ratio)
        assert float(min_snr(2.0)(snr, predicts)) == pytest.approx(min(value, 2) / ratio)
        assert float(p2()(snr, predicts)) == pytest.approx(value / (1 + value) / ratio)
        assert float(p2(0.5, 3.0)(snr, predicts)) == pytest.approx(value / (3 + value) ** 0.5 / ratio)
        for named, same in (("constant", constant), ("min-snr", min_snr()), ("p2", p2())):
            assert torch.equal(WEIGHTINGS[named](snr, predicts), same(snr, predicts))


@fast
@given(lengths, st.data())
def test_sampling_timesteps_cover_the_whole_schedule(timesteps, data):
    steps = data.draw(st.integers(2, timesteps))
    chosen = timesteps_for(NoiseSchedule("cosine", timesteps), steps)
    assert len(chosen) == steps
    assert int(chosen[0]) == timesteps - 1
    assert int(chosen[-1]) == 0
    assert bool((chosen[1:] < chosen[:-1]).all())


def test_a_single_step_of_sampling_is_from_the_noisiest_timestep():
    chosen = timesteps_for(NoiseSchedule("cosine", 10), 1)
    assert chosen.tolist() == [9]
    assert chosen.dtype == torch.int64


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_timesteps_are_refused(steps):
    with pytest.raises(ConfigError, match="choose 1 to 10"):
        timesteps_for(NoiseSchedule("cosine", 10), steps)
