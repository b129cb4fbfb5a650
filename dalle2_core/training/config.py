"""What a training run is told: how long, how it is cut, what it writes when, and where it lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen
from dalle2_core.precision import require_precision
from dalle2_core.training.loggers import LOGGERS


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long a run is, and what it writes when. All intervals are in optimizer steps.

    steps: optimizer steps of the whole run. batch_size: rows of a step, over all processes.
    accumulate: parts that each process takes its rows through one after the other, for want of memory.
    seed: of the data order, the noise and the dropout.
    log_every: one line of means over that many steps. evaluate_every: besides, after the last step.
    show_every: of pictures to look at, and after the last step; None takes evaluate_every.
    save_every: besides, after the last step, after an evaluation that is the best so far and on Ctrl-C.
    keep: newest checkpoints kept; the best one is kept besides.
    ema_decay: of the moving average of the weights, warmed up; None for no average.
    best_metric, best_is: the number of the evaluation that says which checkpoint is best.
    precision: of matrix products, see `dalle2_core.precision`; weights and optimizer stay float32.
    parallel: of several processes, each holds the whole model ("ddp"), or some rows of each of its tensors ("fsdp").
    loggers: where metrics go besides metrics.jsonl: "tensorboard", "wandb".
    """

    steps: int = 1000
    batch_size: int = 256
    accumulate: int = 1
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 500
    keep: int = 2
    ema_decay: float | None = 0.999
    best_metric: str = "loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    loggers: tuple[str, ...] = ()
    show_every: int | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.show_every is not None and self.show_every < 1:
            raise ConfigError(f"train.show_every is {self.show_every}; it must be 1 or more, or None")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay is {self.ema_decay}; it must be in [0, 1), or None for no average")
        if self.best_is not in ("lowest", "highest"):
            raise ConfigError(f"train.best_is is {self.best_is!r}; known: lowest, highest")
        require_precision(self.precision)
        if self.parallel not in ("ddp", "fsdp"):
            raise ConfigError(f"train.parallel is {self.parallel!r}; known: ddp, fsdp")
        for name in self.loggers:
            chosen(LOGGERS, name, "logger")


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run lives, and what it is.

    folder: gets checkpoints/, metrics.jsonl and curves.png.
    describes: plain JSON values that shape the numbers besides the training settings (model config, data
    fingerprint); a run with other values in the same folder is refused.
    on_saved: called after each checkpoint, when the folder holds it and what was pruned is gone.
    grown: flat names of `describes` that differ from the checkpoints' because the data grew, which the caller made sure
    of; the run goes on, and forgets which checkpoint was best: it was judged on other rows.
    """

    folder: Path
    describes: Mapping[str, Any] = field(default_factory=dict)
    on_saved: Callable[[], None] | None = None
    grown: frozenset[str] = frozenset()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a progress bar shows. `loss` is this step's; `seconds` is the step's, data included."""

    step: int
    steps: int
    samples: int
    loss: float
    learning_rate: float
    seconds: float
