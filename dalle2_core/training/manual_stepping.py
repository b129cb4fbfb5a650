"""Stepper: one model of a trainer by DALLE2-pytorch's names, with its optimizer, schedule and moving average.

A trainer holds one for each model that it steps by itself: the prior, each stage of a decoder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError, NonFiniteLoss, ShapeError
from dalle2_core.inputs import as_tensor
from dalle2_core.precision import allowing_tf32, computing, require_precision
from dalle2_core.rng import PerSampleRNG
from dalle2_core.training.checkpoint import refuse_another
from dalle2_core.training.distributed import Processes
from dalle2_core.training.ema import make_ema
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.seeding import seeded_layers, step_draws
from dalle2_core.training.sharded_tensors import StoredTensors
from dalle2_core.training.state import TrainState, load_weights

logger = logging.getLogger(__name__)

LoadedCheckpoint = tuple[dict[str, Any], dict[str, StoredTensors]]
"""What `read_checkpoint` gives."""

_OTHER_SETTINGS = (
    "saved by a model of other settings",
    "Make the model with the saved ones; strict=False takes the weights that fit, whatever they were trained for",
)

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
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.ema_beta < 1:
            raise ConfigError(f"ema_beta is {self.ema_beta}; it must be in [0, 1)")
        for name, least in (("warmup_steps", 0), ("cosine_decay_max_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more, or None")
        if self.ema_update_every < 1 or self.ema_update_after_step < 0:
            raise ConfigError("ema_update_every must be 1 or more, and ema_update_after_step 0 or more")
        require_precision(self.precision)

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
            seeded = seeded_layers(config.seed, step, self.device, f"layers/{before + start}")
            with allowing_tf32(config.precision):
                with seeded, computing(config.precision, self.device):
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

    def identity(self, **extra: Any) -> dict[str, Any]:
        """What a checkpoint records besides tensors and numbers. extra: the caller's own plain JSON values."""
        return {"trainer": asdict(self.config), "model": _training_settings(self.state.model), "extra": extra}

    def load(
        self, folder: Path, found: LoadedCheckpoint, *, only_model: bool, strict: bool, overwrite_lr: bool
    ) -> None:
        """Go on from what `read_checkpoint` found in `folder`. See `DiffusionPriorTrainer.load` for the options.

        Raises AnotherRun if it was saved by a model of other settings, CheckpointError if its weights do not fit.
        """
        content, tensors = found
        identity = content["identity"]
        if "model" not in identity:
            logger.warning("%s: saved before the model's settings were recorded; they are not compared", folder)
        elif strict:
            ours = {"model": _training_settings(self.state.model)}
            refuse_another(folder, {"model": identity["model"]}, ours, *_OTHER_SETTINGS)
        if only_model:
            self._restart(tensors, strict)
        else:
            self.state.load(tensors, content["numbers"], strict=strict)
            if not overwrite_lr:
                self.config = replace(self.config, lr=identity.get("trainer", identity)["lr"])
                self._optim = self.config.optim()
        self._forget()

    def _restart(self, tensors: Mapping[str, StoredTensors], strict: bool) -> None:
        """Take weights and average, and begin optimizer and schedule anew."""
        fresh = TrainState(self.state.model, make_optimizer(self.state.model, self._optim), self.state.ema)
        load_weights(fresh.model, tensors["model"], strict=strict)
        if fresh.ema is not None:
            load_weights(fresh.ema.module, tensors.get("ema", tensors["model"]), strict=strict)
            fresh.ema.n_averaged.zero_()
        self.state = fresh

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


def _training_settings(model: nn.Module) -> dict[str, Any]:
    """The settings of a model that its weights depend on; empty for a module that tells none."""
    tell = getattr(model, "training_settings", None)
    return {} if tell is None else dict(tell())


def prepared(value: Any, name: str, device: torch.device) -> Any:
    """A NumPy array as a tensor on the device; tensors on the device; anything else as it is."""
    return as_tensor(value, name, device) if isinstance(value, (np.ndarray, Tensor)) else value


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
