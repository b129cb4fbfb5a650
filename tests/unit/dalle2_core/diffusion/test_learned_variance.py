"""The learned variance against the normal distributions that it stands for."""

import math

import pytest
import torch
from torch.distributions import Normal

from dalle2_core.diffusion.learned_variance import (
    fraction_from,
    variational_bound,
)
from dalle2_core.diffusion.posterior import Posterior, log_variance, posterior
from dalle2_core.diffusion.samplers import ddpm_step, timesteps_for
from dalle2_core.diffusion.schedules import SCHEDULES, NoiseSchedule

LINEAR = NoiseSchedule("linear", 1000)
# By hand, from the betas: Ho et al. 2006.11239, section 4.
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BARS = torch.cumprod(1 - BETAS, 0)


def at(*steps):
    return torch.tensor(steps)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_the_likelihood_of_a_grey_level_is_a_difference_of_two_cdfs(fraction):
    """2006.11239, equation 13: the outermost levels reach to infinity."""
    levels = torch.tensor([0, 1, 100, 128, 129, 254, 255], dtype=torch.float64) / 127.5 - 1
    means = levels + torch.tensor([0.004, -0.003, 0.012, 0.0, -0.02, 0.006, -0.01], dtype=torch.float64)
    smallest = BETAS[1] * (1 - ALPHA_BARS[0]) / (1 - ALPHA_BARS[1])
    deviation = torch.exp(0.5 * (fraction * BETAS[0].log() + (1 - fraction) * smallest.log()))
    normal = Normal(means, deviation)
    below = torch.where(levels < -0.999, 0.0, normal.cdf(levels - 1 / 255))
    above = torch.where(levels > 0.999, 1.0, normal.cdf(levels + 1 / 255))
    estimate = Posterior(means.float()[:, None], torch.full((7, 1), fraction))
    bits = variational_bound(estimate, levels.float()[:, None], LINEAR, at(*[0] * 7), pixels=True)
    torch.testing.assert_close(bits.double(), -torch.log2(above - below), atol=2e-3, rtol=2e-3)


def test_a_level_that_cannot_be_costs_much_and_no_more_than_can_be_counted():
    far = Posterior(torch.full((1, 1), 0.9), torch.zeros(1, 1))
    bits = variational_bound(far, torch.full((1, 1), -0.5), LINEAR, at(0), pixels=True)
    assert float(bits) == pytest.approx(math.log2(1e12), rel=1e-3)


def test_without_pixels_the_last_term_is_the_divergence_from_the_smallest_variance():
    fraction, x0, estimate = torch.full((1, 1), 0.7), torch.full((1, 1), 0.31), torch.full((1, 1), 0.3)
    smallest = BETAS[1] * (1 - ALPHA_BARS[0]) / (1 - ALPHA_BARS[1])
    ours = Normal(0.3, torch.exp(0.5 * (0.7 * BETAS[0].log() + 0.3 * smallest.log())))
    expected = torch.distributions.kl_divergence(Normal(0.31, smallest.sqrt()), ours) / math.log(2)
    bits = variational_bound(Posterior(estimate, fraction), x0, LINEAR, at(0), pixels=False)
    torch.testing.assert_close(bits.double(), expected[None], atol=1e-4, rtol=5e-3)


def test_the_bound_of_a_row_is_the_mean_over_its_pixels_and_of_rows_one_each():
    draw = torch.Generator().manual_seed(0)
    x0, estimate = (torch.rand(3, 2, 2, 2, generator=draw) - 0.5 for _ in range(2))
    fraction = torch.rand(3, 2, 2, 2, generator=draw)
    t = at(0, 4, 600)
    whole = variational_bound(Posterior(estimate, fraction), x0, LINEAR, t, pixels=True)
    apart = [
        variational_bound(
            Posterior(estimate[i].reshape(8, 1), fraction[i].reshape(8, 1)), x0[i].reshape(8, 1), LINEAR,
            t[i].expand(8), pixels=True,
        ).mean()
        for i in range(3)
    ]  # fmt: skip
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, torch.stack(apart))


@pytest.mark.parametrize(("t", "s"), [(1, 0), (7, 0), (500, 0), (500, 499), (999, 250)])
def test_the_smallest_variance_is_the_posteriors_however_long_the_step(t, s):
    low = log_variance(torch.zeros(1), LINEAR, at(t), at(s)).exp()
    between = 1 - ALPHA_BARS[t] / ALPHA_BARS[s]
    assert float(low) == pytest.approx(float(between * (1 - ALPHA_BARS[s]) / (1 - ALPHA_BARS[t])), rel=2e-3)
    high = log_variance(torch.ones(1), LINEAR, at(t), at(s)).exp()
    assert float(high) == pytest.approx(float(between), rel=2e-3)


@pytest.mark.parametrize("t", [0, 1, 40])
def test_the_step_to_clean_data_takes_the_smallest_variance_of_the_one_before(t):
    low = log_variance(torch.zeros(1), LINEAR, at(t), at(-1)).exp()
    expected = BETAS[1] * (1 - ALPHA_BARS[0]) / (1 - ALPHA_BARS[1])
    assert float(low) == pytest.approx(float(expected), rel=2e-3)
    assert float(log_variance(torch.ones(1), LINEAR, at(t), at(-1)).exp()) == pytest.approx(
        float(1 - ALPHA_BARS[t]), rel=2e-3
    )


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_both_bounds_are_finite_and_in_order_on_every_schedule(name, zero_terminal_snr):
    for timesteps in (2, 3, 50, 1000):
        schedule = NoiseSchedule(name, timesteps, zero_terminal_snr)
        for steps in {2, timesteps}:
            t = timesteps_for(schedule, steps)
            s = torch.cat((t[1:], at(-1)))
            low, high = (log_variance(torch.full((steps,), share), schedule, t, s) for share in (0.0, 1.0))
            assert bool(torch.isfinite(low).all())
            assert bool(torch.isfinite(high).all())
            assert bool((low <= high).all())


def test_a_step_draws_from_the_normal_distribution_of_its_variance():
    draw = torch.Generator().manual_seed(0)
    x, x0 = torch.full((20_000, 1), 0.5), torch.full((20_000, 1), -0.2)
    for t, s in ((300, 100), (1, 0)):
        fraction = torch.full_like(x, 0.25)
        drawn = ddpm_step(x, Posterior(x0, fraction), LINEAR, torch.tensor(t), torch.tensor(s), draw)
        mean, _ = posterior(x[:1], x0[:1], LINEAR, torch.tensor(t), torch.tensor(s))
        deviation = float((0.5 * log_variance(fraction[:1], LINEAR, torch.tensor(t), torch.tensor(s))).exp())
        assert float(drawn.mean()) == pytest.approx(float(mean), abs=0.03 * deviation)
        assert float(drawn.std()) == pytest.approx(deviation, rel=0.02)


def test_the_step_to_clean_data_draws_nothing():
    x, x0 = torch.randn(4, 1), torch.full((4, 1), -0.2)
    clean = ddpm_step(x, Posterior(x0, torch.ones(4, 1)), LINEAR, torch.tensor(10), torch.tensor(-1), None)
    torch.testing.assert_close(clean, x0, atol=1e-4, rtol=0)


def test_a_fraction_is_cut_off_a_width_beyond_the_two_variances():
    output = torch.tensor([-900.0, -3.0, -2.0, 0.0, 2.0, 3.0, 900.0])
    assert fraction_from(output, constrained=False).tolist() == [-1.0, -1.0, -0.5, 0.5, 1.5, 2.0, 2.0]
    torch.testing.assert_close(fraction_from(output, constrained=True), 1 / (1 + (-output).exp()))
