"""The one place where network, schedule and parameterization meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.diffusion.learned_variance import LearnedVariance, variational_bound
from dalle2_core.diffusion.parameterization import X0, Parameterization
from dalle2_core.diffusion.posterior import Denoise, Posterior
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.diffusion.weighting import Weighting, constant
from dalle2_core.inputs import dtype_of
from dalle2_core.keywords import chosen
from dalle2_core.rng import RNG, coin

C = TypeVar("C")

PENALTIES: dict[str, Callable[..., Tensor]] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class DenoisingLoss(NamedTuple):
    """error: of the prediction, weighted, the mean over each row's dimensions, [b].

    bound: bits per dimension that each row's timestep adds to the variational bound, [b], whose gradient reaches the
    variance alone; None where it is not learned.
    """

    error: Tensor
    bound: Tensor | None = None


class Denoiser(nn.Module, Generic[C]):
    """x_t → posterior of x0.

    network(x_t, t, condition, self_cond) gives a tensor shaped like x_t, or of twice its channels where the variance is
    learned; it knows nothing of noise.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        predicts: Parameterization = X0,
        weighting: Weighting = constant,
        penalty: str = "l2",
        clamp: Callable[[Tensor], Tensor] | None = None,
        variance: LearnedVariance | None = None,
    ) -> None:
        """penalty: "l2", "l1" or "huber" (smooth L1, as DALLE2-pytorch names it).

        clamp: brings an estimate of x0 to where data can be; in the loss only where the target is x0.
        variance: how it is learned; None for the fixed one.
        """
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.predicts = predicts
        self.weighting = weighting
        self.penalty = chosen(PENALTIES, penalty, "loss type")
        self.clamp = clamp
        self.variance = variance

    def forward(self, x_t: Tensor, t: Tensor, condition: C, self_cond: Tensor | None = None) -> Posterior:
        """x_t: [b, …]. t: [b] integer. self_cond: an earlier estimate of x0, [b, …]."""
        prediction, fraction = self._output(x_t, t, condition, self_cond)
        return Posterior(self._x0(prediction, x_t, t), fraction)

    def given(self, condition: C) -> Denoise:
        """The denoiser of this condition, as samplers and guidance take it."""
        return lambda x_t, t, self_cond: self(x_t, t, condition, self_cond)

    def loss(
        self, x0: Tensor, t: Tensor, noise: Tensor, condition: C, self_cond: Tensor | None = None
    ) -> DenoisingLoss:
        """The loss of each row at timesteps t [b]."""
        x_t = self.noisy(x0, t, noise)
        prediction, fraction = self._output(x_t, t, condition, self_cond)
        error = self.error(prediction, x0, t, noise)
        if self.variance is None or fraction is None:
            return DenoisingLoss(error)
        # The bound trains the variance alone: the mean is detached. 2102.09672, equation 16.
        found = Posterior(self._x0(prediction.detach().float(), x_t, t), fraction.float())
        return DenoisingLoss(error, variational_bound(found, x0, self.schedule, t, pixels=self.variance.pixels))

    def error(self, prediction: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Weighted error of each row's prediction, [b]."""
        alpha, sigma = self.schedule.at(t, like=x0)
        if self.clamp is not None and self.predicts is X0:
            prediction = self.clamp(prediction)
        target = self.predicts.target(x0, noise, alpha, sigma)
        error = self.penalty(prediction.float(), target, reduction="none").flatten(1).mean(dim=1)
        return error * self.weighting(self.schedule.snr(t), self.predicts)

    def noisy(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma noise. Ho et al. 2006.11239, equation 4."""
        alpha, sigma = self.schedule.at(t, like=x0)
        return alpha * x0 + sigma * noise

    def _output(self, x_t: Tensor, t: Tensor, condition: C, self_cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network's output: its prediction, and the variance's fraction. Only the network is in its own dtype."""
        dtype = dtype_of(self.network)
        output = self.network(x_t.to(dtype), t, condition, None if self_cond is None else self_cond.to(dtype))
        return (output, None) if self.variance is None else self.variance.split(output)

    def _x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.at(t, like=x_t)
        x0 = self.predicts.to_x0(prediction, x_t, alpha, sigma)
        return x0 if self.clamp is None else self.clamp(x0)


def clamped(denoise: Denoise, clamp: Callable[[Tensor], Tensor]) -> Denoise:
    """A denoiser whose estimates of x0 are brought to where data can be; around guidance, which may leave it."""

    def denoise_clamped(x_t: Tensor, t: Tensor, self_cond: Tensor | None) -> Posterior:
        x0, fraction = denoise(x_t, t, self_cond)
        return Posterior(clamp(x0), fraction)

    return denoise_clamped


def first_estimate(denoise: Denoise, x_t: Tensor, t: Tensor, draws: RNG) -> Tensor | None:
    """For half of the training steps the network's own estimate of x0, without gradient, as its `self_cond`.

    Chen et al. 2208.04202, section 2.2.
    """
    if not coin(0.5, draws):
        return None
    with torch.no_grad():
        return denoise(x_t, t, None).x0
