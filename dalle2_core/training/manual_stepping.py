"""Stepper: one model of a trainer by DALLE2-pytorch's names, with its optimizer, schedule and moving average.

A trainer holds one for each model that it steps by itself: the prior, each stage of a decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError, NonFiniteLoss, ShapeError
from dalle2_core.rng import PerSampleRNG
from dalle2_core.training.distributed import Processes
from dalle2_core.training.ema import make_ema
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.seeding import seeded_layers, step_draws
from dalle2_core.training.sharded_tensors import StoredTensors
from dalle2_core.training.state import TrainState, load_weights

LossOf = Callable[[nn.Module, int, int, PerSampleRNG], Tensor]
"""(the module whose forward pass gives a loss, first row, row behind the last, their draws) → scalar."""


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """The keywords of DALLE2-pytorch's trainers, with the prior's defaults, and `betas`, `seed` and `precision`.

    wd: weight decay; group_wd_params: on matrices only. warmup_steps: of a linear warm-up.
    cosine_decay_max_steps: steps over which the rate falls to 0; None leaves it constant.
    ema_beta: decay of the moving average. It copies the weights for ema_update_after_step updates, and then takes every
    ema_update_every-th. seed: of noise and dropout. precision: of matrix products in the forward pass.
    """

    lr: float = 3e-4
    wd: float = 1e-2
    eps: float = 1e-6
    max_grad_norm: float | None = None
    group_wd_params: bool = True
    warmup_steps: int | None = None
    cosine_decay_max_steps: int | None = None
    use_ema: bool = True
    ema_beta: float = 0.9999
    ema_update_after_step: int = 100
    ema_update_every: int = 10
    betas: tuple[float, float] = (0.9, 0.99)
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.ema_beta < 1:
            raise ConfigError(f"ema_beta is {self.ema_beta}; it must be in [0, 1)")
        if self.ema_update_every < 1 or self.ema_update_after_step < 0:
            raise ConfigError("ema_update_every must be 1 or more, and ema_update_after_step 0 or more")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"no precision {self.precision!r}; known: float32, bfloat16")

    def optim(self) -> OptimConfig:
        """The same, as the parts of this package take it."""
        return OptimConfig(
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.wd,
            decay_matrices_only=self.group_wd_params,
            warmup_steps=self.warmup_steps or 0,
            schedule="constant" if self.cosine_decay_max_steps is None else "cosine",
            max_grad_norm=self.max_grad_norm,
        )


class ManualStepper:
    """Adds up gradients of one model, and steps it.

    Under torchrun every process makes the same calls with as many rows of its own: together they are one batch, the
    rows of process 0 first, and train as one process that is given all of it.
    """

    def __init__(self, model: nn.Module, loss_pass: nn.Module, config: TrainerConfig, together: Processes) -> None:
        """loss_pass: a module that holds `model` and whose forward pass gives its loss; `model` itself may be one."""
        self.config = config
        self.device = next(model.parameters()).device
        self._optim = config.optim()
        self._together = together
        ema = make_ema(model, config.ema_beta) if config.use_ema else None
        self.state = TrainState(model, make_optimizer(model, self._optim), ema)
        self._pass = together.parallel(loss_pass)
        self._rows = 0

    def add(self, rows: int, max_batch_size: int | None, loss_of: LossOf, *, training: bool) -> float:
        """The loss, the mean over the rows of all processes; if `training`, its gradients are added up.

        max_batch_size: rows taken at once; it changes the result by rounding only (and the masks of dropout). Raises
        NonFiniteLoss, and forgets the gradients so far then.
        """
        config, step, total = self.config, self.state.step + 1, 0.0
        before = self._together.world * self._rows + self._together.rank * rows
        for start, stop in parts(rows, max_batch_size):
            draws = step_draws(config.seed, step, before + start, stop - start, self.device)
            mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
            with seeded_layers(config.seed, step, self.device, f"layers/{before + start}"), mixed:
                loss = loss_of(self._pass, start, stop, draws) * ((stop - start) / rows)
            if training:
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        total = self._together.add_up({"loss": total})["loss"] / self._together.world
        if not math.isfinite(total):
            self._forget()
            raise NonFiniteLoss(f"update {step}: the loss is {total}; look at that batch, or lower lr", step)
        if training:
            self._rows += rows
        return total

    def update(self) -> None:
        """One step of the optimizer, then of the average; gradients are cleared. Raises NonFiniteLoss."""
        state, step = self.state, self.state.step + 1
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), limit))
        if not math.isfinite(norm):
            self._forget()
            raise NonFiniteLoss(f"update {step}: the gradient's norm is {norm}; lower lr", step)
        rate = learning_rate(step, self.config.cosine_decay_max_steps or 0, self._optim)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.step = step
        state.samples += self._rows * self._together.world
        self._forget()
        self._average()

    def load(self, tensors: dict[str, StoredTensors], numbers: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises CheckpointError if it is another model's."""
        self.state.load(tensors, numbers)
        self._forget()

    def restart(self, tensors: dict[str, StoredTensors]) -> None:
        """Take weights and average, and begin optimizer and schedule anew. Raises CheckpointError as `load`."""
        fresh = TrainState(self.state.model, make_optimizer(self.state.model, self._optim), self.state.ema)
        load_weights(fresh.model, tensors["model"])
        if fresh.ema is not None:
            load_weights(fresh.ema.module, tensors.get("ema", tensors["model"]))
            fresh.ema.n_averaged.zero_()
        self.state = fresh
        self._forget()

    def _forget(self) -> None:
        self.state.optimizer.zero_grad(set_to_none=True)
        self._rows = 0

    def _average(self) -> None:
        ema, config = self.state.ema, self.config
        if ema is None:
            return
        if self.state.step <= config.ema_update_after_step:
            ema.n_averaged.zero_()  # the next update copies
            ema.update_parameters(self.state.model)
        elif self.state.step % config.ema_update_every == 0:
            ema.update_parameters(self.state.model)


def rows_in(inputs: tuple[Any, ...], named: dict[str, Any]) -> int:
    """How many rows the tensors among the inputs have. Raises ShapeError if they do not agree."""
    counts = {len(it) for it in (*inputs, *named.values()) if isinstance(it, Tensor) and it.ndim}
    if len(counts) != 1 or 0 in counts:
        raise ShapeError(f"inputs of {sorted(counts)} rows; give tensors of the same number of rows, one or more")
    return counts.pop()


def parts(rows: int, most: int | None) -> Iterator[tuple[int, int]]:
    """Start and stop of pieces of at most `most` rows; None takes all together."""
    if most is not None and most < 1:
        raise ConfigError(f"max_batch_size is {most}; it must be 1 or more")
    size = most or rows
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def cut(value: Any, start: int, stop: int) -> Any:
    """Rows `start` to `stop` of a tensor; what is none goes to all parts."""
    return value[start:stop] if isinstance(value, Tensor) and value.ndim else value
