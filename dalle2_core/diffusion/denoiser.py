"""The one place where network, schedule and parameterization meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.diffusion.parameterization import X0, Parameterization
from dalle2_core.diffusion.schedules import NoiseSchedule
from dalle2_core.diffusion.weighting import Weighting, constant
from dalle2_core.keywords import chosen

C = TypeVar("C")

PENALTIES: dict[str, Callable[..., Tensor]] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class Denoiser(nn.Module, Generic[C]):
    """x_t → x0.

    network(x_t, t, condition, self_cond) gives a tensor shaped like x_t; it knows nothing of noise.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        predicts: Parameterization = X0,
        weighting: Weighting = constant,
        penalty: str = "l2",
        clamp: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """penalty: "l2", "l1" or "huber" (smooth L1, as DALLE2-pytorch names it).

        clamp: brings an estimate of x0 to where data can be; in the loss only where the target is x0.
        """
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.predicts = predicts
        self.weighting = weighting
        self.penalty = chosen(PENALTIES, penalty, "loss type")
        self.clamp = clamp

    def forward(self, x_t: Tensor, t: Tensor, condition: C, self_cond: Tensor | None = None) -> Tensor:
        """The estimate of x0, [b, …]. x_t: [b, …]. t: [b] integer. self_cond: an earlier estimate of x0."""
        alpha, sigma = self.schedule.at(t, like=x_t)
        x0 = self.predicts.to_x0(self.network(x_t, t, condition, self_cond), x_t, alpha, sigma)
        return x0 if self.clamp is None else self.clamp(x0)

    def loss(self, x0: Tensor, t: Tensor, noise: Tensor, condition: C, self_cond: Tensor | None = None) -> Tensor:
        """Weighted error of each sample, [b], the mean over its dimensions."""
        return self.error(self.network(self.noisy(x0, t, noise), t, condition, self_cond), x0, t, noise)

    def error(self, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Weighted error of each sample's output, [b]."""
        alpha, sigma = self.schedule.at(t, like=x0)
        if self.clamp is not None and self.predicts is X0:
            output = self.clamp(output)
        target = self.predicts.target(x0, noise, alpha, sigma)
        error = self.penalty(output.float(), target, reduction="none").flatten(1).mean(dim=1)
        return error * self.weighting(self.schedule.snr(t), self.predicts)

    def noisy(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma noise. Ho et al. 2006.11239, equation 4."""
        alpha, sigma = self.schedule.at(t, like=x0)
        return alpha * x0 + sigma * noise
