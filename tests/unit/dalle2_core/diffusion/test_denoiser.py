"""The denoiser joins network, schedule and target: each call and each loss by hand."""

import pytest
import torch
from torch.nn import functional as F

from dalle2_core.diffusion.denoiser import Denoiser, clamped, first_estimate
from dalle2_core.diffusion.learned_variance import LearnedVariance, fraction_from, variational_bound
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS, X0, V
from dalle2_core.diffusion.posterior import Posterior
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.diffusion.weighting import min_snr, p2
from dalle2_core.errors import ConfigError

SCHEDULE = NoiseSchedule("cosine", 50)
X = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0, 20, 49])
ALPHA = SCHEDULE.alphas[T + 1].view(3, 1, 1)
SIGMA = SCHEDULE.sigmas[T + 1].view(3, 1, 1)
every_target = pytest.mark.parametrize("predicts", list(PARAMETERIZATIONS.values()), ids=lambda it: it.name)


class Scaled(torch.nn.Module):
    """w·x_t, whatever else it is told, which it remembers."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x_t, t, condition, self_cond):
        self.told = x_t, t, condition, self_cond
        return self.weight * x_t


@every_target
def test_an_estimate_is_read_out_of_the_networks_output(predicts):
    network = Scaled()
    denoiser = Denoiser(network, SCHEDULE, predicts)
    found = denoiser(X, T, "condition", NOISE)
    torch.testing.assert_close(found.x0, predicts.to_x0(0.7 * X, X, ALPHA, SIGMA))
    assert found.fraction is None
    assert torch.equal(denoiser.given("condition")(X, T, NOISE).x0, found.x0)
    assert network.told[0] is X
    assert network.told[1] is T
    assert network.told[2] == "condition"
    assert network.told[3] is NOISE
    denoiser(X, T, None)
    assert network.told[3] is None
    clamping = Denoiser(network, SCHEDULE, predicts, clamp=lambda x0: x0.clamp(-0.1, 0.1))(X, T, None)
    torch.testing.assert_close(clamping.x0, found.x0.clamp(-0.1, 0.1))


def test_it_is_a_module_of_its_network_alone():
    assert [name for name, _ in Denoiser(Scaled(), SCHEDULE).named_parameters()] == ["network.weight"]
    assert list(Denoiser(Scaled(), SCHEDULE).state_dict()) == ["network.weight"]


@every_target
@pytest.mark.parametrize("penalty", ["l2", "l1", "huber"])
@pytest.mark.parametrize("weighting", [min_snr(0.5), p2(2.0, 0.5)])
def test_the_loss_of_a_row_is_the_weighted_mean_over_its_numbers(predicts, penalty, weighting):
    network = Scaled()
    denoiser = Denoiser(network, SCHEDULE, predicts, weighting, penalty)
    found = denoiser.loss(X, T, NOISE, "condition", X)
    noisy = ALPHA * X + SIGMA * NOISE
    torch.testing.assert_close(network.told[0], noisy)
    assert network.told[2] == "condition"
    assert network.told[3] is X
    function = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[penalty]
    target = predicts.target(X, NOISE, ALPHA, SIGMA)
    rows = [function(0.7 * noisy[row], target[row].expand(4, 2)) for row in range(3)]
    weights = weighting(SCHEDULE.snr(T), predicts)
    torch.testing.assert_close(found.error, torch.stack(rows) * weights)
    assert found.bound is None


def test_the_loss_is_clamped_only_where_the_target_is_x0():
    def clamp(x0):
        return x0.clamp(-0.1, 0.1)

    for predicts, expected in ((X0, (X.clamp(-0.1, 0.1) - X)), (V, X - V.target(X, NOISE, ALPHA, SIGMA))):
        found = Denoiser(Scaled(), SCHEDULE, predicts, clamp=clamp).error(X, X, T, NOISE)
        torch.testing.assert_close(found, expected.square().flatten(1).mean(1))


def test_without_being_told_it_predicts_x0_with_equal_weights():
    denoiser = Denoiser(Scaled(), SCHEDULE)
    torch.testing.assert_close(
        denoiser.loss(X, T, NOISE, None).error, denoiser.error(0.7 * denoiser.noisy(X, T, NOISE), X, T, NOISE)
    )
    torch.testing.assert_close(denoiser.error(X + 2, X, T, NOISE), torch.full((3,), 4.0))
    half = denoiser.error((X + 2).bfloat16(), X, T, NOISE)
    assert half.dtype == torch.float32
    with pytest.raises(ConfigError, match="no loss type 'l3'"):
        Denoiser(Scaled(), SCHEDULE, penalty="l3")


class WithVariance(Scaled):
    """Besides the prediction, a variance of its own."""

    def __init__(self):
        super().__init__()
        self.spread = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x_t, t, condition, self_cond):
        return torch.cat((super().forward(x_t, t, condition, self_cond), self.spread * x_t), dim=1)


@every_target
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_learned_variance_is_the_second_half_of_the_output_and_its_bound_trains_it_alone(
    predicts, constrained, pixels
):
    network = WithVariance()
    denoiser = Denoiser(network, SCHEDULE, predicts, variance=LearnedVariance(constrained, pixels))
    plain = Denoiser(Scaled(), SCHEDULE, predicts)
    noisy = denoiser.noisy(X, T, NOISE)
    found = denoiser(noisy, T, None)
    torch.testing.assert_close(found.x0, plain(noisy, T, None).x0)
    torch.testing.assert_close(found.fraction, fraction_from(0.3 * noisy, constrained))
    loss = denoiser.loss(X, T, NOISE, None)
    torch.testing.assert_close(loss.error, plain.loss(X, T, NOISE, None).error)
    torch.testing.assert_close(loss.bound, variational_bound(found, X, SCHEDULE, T, pixels=pixels))
    loss.bound.sum().backward()
    assert float(network.weight.grad) == 0
    assert float(network.spread.grad) != 0


def test_a_clamp_around_a_denoiser_changes_x0_and_leaves_the_fraction():
    found = clamped(lambda x_t, t, self_cond: Posterior(2 * x_t, self_cond), torch.sign)(X, T, NOISE)
    assert torch.equal(found.x0, X.sign())
    assert found.fraction is NOISE


def test_half_of_the_steps_see_a_first_estimate_that_takes_no_gradient():
    denoise = Denoiser(Scaled(), SCHEDULE).given(None)
    draws = torch.Generator().manual_seed(0)
    found = [first_estimate(denoise, X, T, draws) for _ in range(400)]
    seen = [it for it in found if it is not None]
    assert 160 < len(seen) < 240
    torch.testing.assert_close(seen[0], 0.7 * X)
    assert not seen[0].requires_grad
