"""A decoder's stage on Gaussian data, whose best network and whose reverse process are known in closed form."""

import math

import pytest
import torch

from dalle2_core import DecoderBatch, DecoderCondition, DecoderStage, StageConfig
from dalle2_core.decoder.stage_sampler import Inpainting, StageSampler, StageSamplingConfig
from dalle2_core.diffusion.learned_variance import fraction_from, variational_bound
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.posterior import Posterior, log_variance, posterior
from dalle2_core.diffusion.samplers import SAMPLERS, timesteps_for
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.errors import ConfigError
from tests.tiny_unet import GaussianUnet

PREDICTS = list(PARAMETERIZATIONS)
# In the network's range [-1, 1]: far enough inside that clipping does not matter.
MEAN = torch.tensor([0.3, -0.2])
COVARIANCE = torch.tensor([[0.05, 0.03], [0.03, 0.04]])


def stage(predicts="x0", shape=(2, 1, 1), mean=MEAN, covariance=COVARIANCE, before=None, timesteps=500, **config):
    settings = StageConfig(
        image_size=shape[1], predicts=predicts, timesteps=timesteps, thresholding="none",
        learned_variance=before is not None, learned_variance_constrain_frac=False, **config,
    )  # fmt: skip
    schedule = NoiseSchedule("cosine", timesteps)
    network = GaussianUnet(shape, mean, covariance, PARAMETERIZATIONS[predicts], schedule, before)
    return DecoderStage(network, settings)


def samples(it, rows, **sampling):
    draw = torch.Generator().manual_seed(0)
    pixels = StageSampler(it, StageSamplingConfig(**sampling)).sample(
        DecoderCondition(), draw, rows, start=None, known=None
    )
    return (pixels * 2 - 1).flatten(1)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_gaussian_images_come_back(sampler, predicts):
    x = samples(stage(predicts), 6000, sampler=sampler, steps=100)
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.015, rtol=0)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, atol=0.005, rtol=0)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_right_variance_samples_exactly_in_four_steps(predicts):
    """The reverse process of a Gaussian is Gaussian: with its variance any number of steps is exact."""
    mean, covariance = torch.tensor([0.2]), torch.tensor([[0.06]])
    steps = 4
    plan = timesteps_for(NoiseSchedule("cosine", 500), steps).tolist()
    before = dict(zip(plan, [*plan[1:], -1], strict=True))
    x = samples(stage(predicts, (1, 1, 1), mean, covariance, before), 8000, sampler="ddpm", steps=steps)
    fixed = samples(stage(predicts, (1, 1, 1), mean, covariance), 8000, sampler="ddpm", steps=steps)
    # The last step draws nothing: what x at the last timestep leaves open of x0 is lacking.
    torch.testing.assert_close(x.var(), covariance[0, 0], atol=0.004, rtol=0)
    torch.testing.assert_close(x.mean(), mean[0], atol=0.015, rtol=0)
    assert fixed.var() < 0.8 * covariance[0, 0]


def test_the_bound_is_least_at_the_right_variance():
    """Of normal distributions around the best mean, the reverse process's own has the least divergence."""
    schedule, t = NoiseSchedule("cosine", 100), 40
    draw = torch.Generator().manual_seed(0)
    rows, variance = 40000, 0.06
    x0 = math.sqrt(variance) * torch.randn(rows, 1, generator=draw)
    alpha, sigma = schedule.alpha(torch.tensor(t)), schedule.sigma(torch.tensor(t))
    x_t = alpha * x0 + sigma * torch.randn(rows, 1, generator=draw)
    best = x_t * alpha * variance / (alpha**2 * variance + sigma**2)
    network = GaussianUnet((1, 1, 1), torch.zeros(1), torch.tensor([[variance]]), PARAMETERIZATIONS["x0"], schedule, {})
    left = variance - (alpha * variance) ** 2 / (alpha**2 * variance + sigma**2)
    right = float(network.right_fraction(torch.tensor(t), t - 1, left))
    assert 0.02 < right < 0.98

    def bound(fraction):
        estimate = Posterior(best, torch.full_like(best, fraction))
        return float(variational_bound(estimate, x0, schedule, torch.full((rows,), t), pixels=True).mean())

    assert bound(right) < min(bound(right - 0.02), bound(right + 0.02))


@pytest.mark.parametrize("pixels", [True, False])
def test_the_bound_is_the_divergence_of_the_two_normal_distributions(pixels):
    from torch.distributions import Normal, kl_divergence

    schedule = NoiseSchedule("cosine", 50)
    draw = torch.Generator().manual_seed(0)
    x0, estimate, x_t = torch.rand(3, 4, 2, 3, 3, generator=draw)[:3] * 2 - 1
    fraction = torch.rand(4, 2, 3, 3, generator=draw)
    t = torch.tensor([1, 7, 30, 49])
    ours = variational_bound(Posterior(estimate, fraction), x0, schedule, t, pixels=pixels)
    for row in range(4):
        s = t[row] - 1
        true_mean, true_variance = posterior(x_t[row], x0[row], schedule, t[row], s)
        mean, _ = posterior(x_t[row], estimate[row], schedule, t[row], s)
        deviation = (0.5 * log_variance(fraction[row], schedule, t[row], s)).exp()
        expected = kl_divergence(Normal(true_mean, true_variance.sqrt()), Normal(mean, deviation)).mean() / math.log(2)
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=1e-3)


def test_the_last_term_is_the_likelihood_of_a_grey_level():
    """All 256 levels' probabilities sum to 1."""
    schedule = NoiseSchedule("cosine", 50)
    levels = torch.arange(256) / 127.5 - 1
    x0 = levels.view(256, 1, 1, 1)
    estimate = Posterior(torch.full_like(x0, 0.93), torch.full_like(x0, 2.0))
    bits = variational_bound(estimate, x0, schedule, torch.zeros(256, dtype=torch.long), pixels=True)
    assert float((2.0**-bits).sum()) == pytest.approx(1.0, abs=1e-4)


def test_fraction_interpolates_between_the_two_variances():
    schedule, t, s = NoiseSchedule("linear", 1000), torch.tensor([500]), torch.tensor([499])
    low, high = (log_variance(torch.full((1,), share), schedule, t, s).exp() for share in (0.0, 1.0))
    alpha_bar = schedule.alpha(torch.arange(-1, 1000)).double() ** 2
    beta = 1 - alpha_bar[501] / alpha_bar[500]
    assert float(high) == pytest.approx(float(beta), rel=1e-3)
    assert float(low) == pytest.approx(float(beta * (1 - alpha_bar[500]) / (1 - alpha_bar[501])), rel=1e-3)
    assert fraction_from(torch.tensor([-1.0, 0.0, 1.0, 900.0]), constrained=False).tolist() == [0.0, 0.5, 1.0, 2.0]
    assert fraction_from(torch.tensor([0.0]), constrained=True).tolist() == [0.5]


def test_the_bound_does_not_depend_on_what_the_network_predicts():
    """The mean is that of the estimated x0: three networks that mean the same have the same bound."""
    images = torch.rand(16, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    bounds = []
    for predicts in PREDICTS:
        it = stage(predicts, (1, 1, 1), torch.tensor([0.2]), torch.tensor([[0.06]]), {t: t - 1 for t in range(8)}, 8)
        # One timestep for all rows, as this network wants it.
        rows = [it.loss(DecoderBatch(images[i : i + 1]), torch.Generator().manual_seed(i)).metrics for i in range(16)]
        bounds.append([float(row["bound_bits"]) for row in rows])
    for other in bounds[1:]:
        assert other == pytest.approx(bounds[0], rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_repaint_fills_in_what_goes_with_what_is_known(sampler):
    """Two by two pixels that are nearly alike; the left ones are known."""
    covariance = 0.05 * (0.9 * torch.ones(4, 4) + 0.1 * torch.eye(4))
    it = stage("v", (1, 2, 2), torch.zeros(4), covariance)
    rows = 800
    draw = torch.Generator().manual_seed(1)
    truth = torch.linalg.cholesky(covariance) @ torch.randn(4, rows, generator=draw)
    images = (truth.T.view(rows, 1, 2, 2) + 1) / 2
    mask = torch.tensor([[True, False], [True, False]]).expand(rows, 1, 2, 2)
    hidden = torch.where(mask, images, float("nan"))
    known = Inpainting.checked(hidden, mask, 5, rows, 1)
    sampling = StageSampler(it, StageSamplingConfig(sampler=sampler, steps=40))
    out = sampling.sample(DecoderCondition(), draw, rows, start=None, known=known)
    assert float((out - images)[mask].abs().max()) <= 1 / 255
    filled, given = out[:, 0, :, 1].flatten(), images[:, 0, :, 0].mean(1).repeat_interleave(2)
    assert float(torch.stack((filled, given)).corrcoef()[0, 1]) > 0.8


def test_inversion_finds_the_noise_that_makes_the_image():
    it = stage("noise")
    draw = torch.Generator().manual_seed(2)
    x = MEAN + torch.randn(500, 2, generator=draw) @ torch.linalg.cholesky(COVARIANCE).T
    pixels = (x.view(500, 2, 1, 1) + 1) / 2
    missed = []
    for refinements in (0, 2):
        sampling = StageSampler(it, StageSamplingConfig(sampler="ddim", steps=100))
        noise = sampling.invert(DecoderCondition(), pixels, refinements)
        back = sampling.sample(DecoderCondition(), None, 500, start=noise, known=None)
        missed.append(float((back - pixels).abs().max()))
    assert missed[0] < 0.05
    assert missed[1] < 0.2 * missed[0]
    # It is noise: standard normal.
    torch.testing.assert_close(noise.flatten(1).T.cov(), torch.eye(2), atol=0.25, rtol=0)


@pytest.mark.parametrize("config", [{"zero_terminal_snr": True}, {"beta_schedule": "flow"}], ids=str)
@pytest.mark.parametrize("learned", [True, False])
def test_training_and_sampling_from_pure_noise_stay_finite(config, learned):
    before = {t: t - 1 for t in range(500)} if learned else None
    it = stage("v", (1, 1, 1), torch.tensor([0.2]), torch.tensor([[0.06]]), before, **config)
    it.unet.schedule = it.schedule
    images = torch.rand(1, 1, 1, 1)
    assert all(
        bool(torch.isfinite(it.loss(DecoderBatch(images), torch.Generator().manual_seed(i)).loss)) for i in range(40)
    )
    x = samples(it, 2000, sampler="ddpm", steps=500)
    torch.testing.assert_close(x.mean(), torch.tensor(0.2), atol=0.03, rtol=0)
    torch.testing.assert_close(x.var(), torch.tensor(0.06), atol=0.01, rtol=0)
    with pytest.raises(ConfigError, match="cannot give x0 where nothing is left"):
        StageConfig(1, predicts="noise", **config)
