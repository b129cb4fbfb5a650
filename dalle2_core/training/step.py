"""One optimizer step over a global batch, whatever processes and parts the batch is cut into."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dalle2_core.errors import ConfigError, NonFiniteLoss
from dalle2_core.precision import allowing_tf32, computing
from dalle2_core.rng import RNG
from dalle2_core.training.config import TrainConfig
from dalle2_core.training.distributed import Processes
from dalle2_core.training.optim import OptimConfig
from dalle2_core.training.seeding import seeded_layers, step_draws
from dalle2_core.training.state import TrainState
from dalle2_core.types import NonGradientUpdate, SizedBatch, StepLoss, on_host

_ADVICE = "the last checkpoint is intact. Look at those rows, or lower optim.lr"


class LossPass(nn.Module):
    """A model's loss as a forward pass: what wrappers that average gradients listen to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, draws: RNG) -> StepLoss:
        """`model.loss`."""
        loss: StepLoss = self.model.loss(batch, draws)  # type: ignore[operator]
        return loss


def refuse_to_cut(model: nn.Module, config: TrainConfig, together: Processes) -> None:
    """Raise ConfigError for a batch that cannot be cut as it is to be."""
    cuts = together.world * config.accumulate
    if cuts > config.batch_size:
        raise ConfigError(
            f"train.batch_size {config.batch_size} is less than a row for each of {together.world} processes times "
            f"train.accumulate {config.accumulate}; give at least {cuts}"
        )
    if cuts > 1 and getattr(model, "compares_rows", False):
        raise ConfigError(
            f"the loss of a {type(model).__name__} compares the rows of a batch with each other, so a batch cannot be "
            "cut: train it in one process, with train.accumulate=1"
        )


def take_step(
    state: TrainState,
    loss_pass: nn.Module,
    batch: SizedBatch,
    rate: float,
    config: TrainConfig,
    optim: OptimConfig,
    together: Processes,
) -> float:
    """Take it; returns its loss, the mean over the global batch. Nothing in `state` has changed if it raises.

    loss_pass: `LossPass(state.model)`, made parallel (see `placement`). batch: this process's rows of the global batch,
    on its device.
    """
    step, device = state.step + 1, next(state.model.parameters()).device
    start, stop = together.share(config.batch_size)
    if len(batch) != stop - start:
        raise ConfigError(
            f"the stream gave {len(batch)} rows to process {together.rank} of {together.world}; "
            f"{stop - start} of train.batch_size {config.batch_size} are its"
        )

    state.optimizer.zero_grad(set_to_none=True)
    results: list[tuple[int, int, StepLoss]] = []
    cuts = [(stop - start) * part // config.accumulate for part in range(config.accumulate + 1)]
    for first, last in itertools.pairwise(cuts):
        rows = last - first
        draws = step_draws(config.seed, step, start + first, rows, device)
        with nullcontext() if last == stop - start else together.unsynced(loss_pass), allowing_tf32(config.precision):
            seeded = seeded_layers(config.seed, step, device, f"layers/{start + first}")
            with seeded, computing(config.precision, device):
                result: StepLoss = loss_pass(batch if rows == len(batch) else batch.part(first, last), draws)
            # Parts add up and processes are averaged: this makes it the mean over the rows of the global batch.
            (result.loss * (rows * together.world / config.batch_size)).backward()  # type: ignore[no-untyped-call]
        results.append((start + first, rows, StepLoss(result.loss.detach(), result.metrics)))

    limit = math.inf if optim.max_grad_norm is None else optim.max_grad_norm
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    losses, sums, grad_norm = _read(results, norm.full_tensor() if isinstance(norm, DTensor) else norm)
    means = {name: value / config.batch_size for name, value in together.add_up(sums).items()}
    if not math.isfinite(means["loss"]):
        first, last = _broken(losses, together)
        where = f"step {step}, samples {state.samples + first + 1} to {state.samples + last}"
        raise NonFiniteLoss(f"{where}: the loss is {means['loss']}; {_ADVICE}", step)

    if not math.isfinite(grad_norm):
        where = f"step {step}, samples {state.samples + 1} to {state.samples + config.batch_size}"
        raise NonFiniteLoss(f"{where}: the gradient's norm is {grad_norm}; {_ADVICE}", step)

    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    if isinstance(state.model, NonGradientUpdate):
        state.model.after_step(together)
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    state.step = step
    state.samples += config.batch_size
    state.tally.add(means | {"grad_norm": grad_norm}, config.batch_size)
    return means["loss"]


def _read(
    results: list[tuple[int, int, StepLoss]], norm: Tensor
) -> tuple[list[tuple[int, int, float]], dict[str, float], float]:
    """The parts' losses, all numbers added up over their rows, and the gradient's norm: the one wait of a step."""
    numbers = [{**one.metrics, "loss": one.loss} for _, _, one in results]
    flat = {f"{place}/{name}": it for place, some in enumerate(numbers) for name, it in some.items()}
    told = on_host({**flat, "norm": norm})
    sums: dict[str, float] = {}
    for place, ((_, rows, _), some) in enumerate(zip(results, numbers, strict=True)):
        for name in some:
            sums[name] = sums.get(name, 0.0) + told[f"{place}/{name}"] * rows
    losses = [(first, rows, told[f"{place}/loss"]) for place, (first, rows, _) in enumerate(results)]
    return losses, sums, told["norm"]


def _broken(losses: list[tuple[int, int, float]], together: Processes) -> tuple[int, int]:
    """[first, last) rows of the first part, over all processes, whose loss is not finite."""
    mine = [(first, first + rows) for first, rows, loss in losses if not math.isfinite(loss)]
    first, last = min(itertools.chain.from_iterable(together.gather(mine)))
    return int(first), int(last)
