"""train(): read it from top to bottom. It serves every model of this package."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from dalle2_core.errors import ConfigError, NonFiniteLoss
from dalle2_core.training.checkpoint import Checkpoints
from dalle2_core.training.curves import plot_curves
from dalle2_core.training.ema import make_ema
from dalle2_core.training.log import MetricLog
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.randomness import seeded_layers, step_generator
from dalle2_core.training.state import Best, Tally, TrainState
from dalle2_core.types import Batch, Trainable

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long a run is, and what it writes when. All intervals are in optimizer steps.

    steps: optimizer steps of the whole run. batch_size: rows of a step; the stream of batches keeps to it.
    seed: of the data order, the noise and the dropout.
    log_every: one line of means over that many steps. evaluate_every: besides, after the last step.
    save_every: besides, after the last step, after an evaluation that is the best so far and on Ctrl-C.
    keep: newest checkpoints kept; the best one is kept besides.
    ema_decay: of the moving average of the weights, warmed up; None for no average.
    best_metric, best_is: the number of the evaluation that says which checkpoint is best.
    precision: of matrix products in the forward pass; weights and optimizer stay float32.
    """

    steps: int = 1000
    batch_size: int = 256
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 500
    keep: int = 2
    ema_decay: float | None = 0.999
    best_metric: str = "loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay is {self.ema_decay}; it must be in [0, 1), or None for no average")
        if self.best_is not in ("lowest", "highest"):
            raise ConfigError(f"train.best_is is {self.best_is!r}; known: lowest, highest")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"no precision {self.precision!r}; known: float32, bfloat16")


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run lives, and what it is.

    folder: gets checkpoints/, metrics.jsonl and curves.png.
    describes: plain JSON values that shape the numbers besides the training settings (model config, data
    fingerprint); a run with other values in the same folder is refused.
    """

    folder: Path
    describes: Mapping[str, Any] = field(default_factory=dict)

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


def train(
    model: Trainable[B],
    stream: Callable[[int], Iterator[B]],
    run: Run,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainState:
    """Train until `config.steps` optimizer steps are done. The same call again resumes.

    Resume is exact: killed at any moment and called again, a CPU run ends with the same bits as one that was
    never disturbed.

    Args:
        model: a torch.nn.Module with `loss(batch, generator)`, on the device where it is to be trained.
        stream: given the number of steps done, yields the batches from there on, without end. The order must be
            a function of that number alone.
        evaluate: given the averaged model in eval mode, without gradients, returns numbers for the log. It must
            hold `config.best_metric`.
        on_step: called after every step.

    Returns:
        The state after the last step; `state.averaged` is the model to keep.

    Raises:
        NonFiniteLoss: the loss or the gradient is NaN or infinite; the checkpoints are all from before.
        CheckpointError: the folder belongs to another run, or the disk is full.
        KeyboardInterrupt: after a checkpoint of the last finished step was written.
    """
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    ema = None if config.ema_decay is None else make_ema(model, config.ema_decay)
    state = TrainState(model, make_optimizer(model, optim), ema)

    checkpoints = Checkpoints(run.checkpoints, _identity(run, config, optim), config.keep)
    checkpoints.resume(state)
    saved_step = state.step
    log = MetricLog(run.metrics)
    log.cut_after({"train": state.step, "valid": state.evaluated_step})

    model.train()
    batches = stream(state.step)
    try:
        while True:
            is_last = state.step >= config.steps

            # First what is due after the last step: an interrupted evaluation is made up for on resume.
            evaluates = state.step > state.evaluated_step and (is_last or state.step % config.evaluate_every == 0)
            is_best = False
            if evaluate is not None and evaluates:
                numbers = _evaluate(state, evaluate, config, device)
                with _interrupt_deferred():
                    is_best = _note_best(state, numbers, config)
                    log.write("valid", state.step, state.samples, numbers)
                    state.evaluated_step = state.step
            saves = is_last or state.step % config.save_every == 0
            if is_best or (saves and state.step > saved_step):
                checkpoints.save(state)
                saved_step = state.step
            if is_last:
                break

            started = time.perf_counter()
            try:
                batch = next(batches).to(device)
            except StopIteration:
                raise ConfigError(
                    f"the stream of batches ended after {state.step} of {config.steps} steps; it must be endless"
                ) from None

            # Ctrl-C waits here, so that no checkpoint ever holds half a step.
            with _interrupt_deferred():
                rate = learning_rate(state.step + 1, config.steps, optim)
                loss = _step(state, model, batch, rate, config, optim, device)
                seconds = time.perf_counter() - started
                state.seconds += seconds
                if state.step % config.log_every == 0 or state.step == config.steps:
                    timing = {"learning_rate": rate, "seconds": state.seconds}
                    log.write("train", state.step, state.samples, state.tally.means() | timing)
                    state.tally = Tally()
            if on_step is not None:
                on_step(StepReport(state.step, config.steps, state.samples, loss, rate, seconds))
    except KeyboardInterrupt:
        if state.step > saved_step:
            checkpoints.save(state)
        raise
    plot_curves(run.metrics, run.curves)
    return state


def _step(
    state: TrainState,
    model: Trainable[B],
    batch: B,
    rate: float,
    config: TrainConfig,
    optim: OptimConfig,
    device: torch.device,
) -> float:
    """One optimizer step; returns its loss. Nothing in `state` has changed if it raises."""
    step = state.step + 1
    generator = step_generator(config.seed, step, device)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    with seeded_layers(config.seed, step, device), mixed:
        result = model.loss(batch, generator)
    loss = float(result.loss.detach())
    where = f"step {step}, samples {state.samples + 1} to {state.samples + len(batch)}"
    advice = "the last checkpoint is intact. Look at those rows, or lower optim.lr"
    if not math.isfinite(loss):
        raise NonFiniteLoss(f"{where}: the loss is {loss}; {advice}", step)

    state.optimizer.zero_grad(set_to_none=True)
    result.loss.backward()  # type: ignore[no-untyped-call]
    limit = math.inf if optim.max_grad_norm is None else optim.max_grad_norm
    grad_norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), limit))
    if not math.isfinite(grad_norm):
        raise NonFiniteLoss(f"{where}: the gradient's norm is {grad_norm}; {advice}", step)

    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    state.step = step
    state.samples += len(batch)
    state.tally.add({"loss": loss, "grad_norm": grad_norm, **result.metrics}, len(batch))
    return loss


def _evaluate(
    state: TrainState,
    evaluate: Callable[[Any], Mapping[str, float]],
    config: TrainConfig,
    device: torch.device,
) -> dict[str, float]:
    """Numbers of the averaged model; the draws of an evaluation never reach the training."""
    judged = state.averaged
    judged.eval()
    with torch.no_grad(), seeded_layers(config.seed, state.step, device, "evaluate"):
        numbers = dict(evaluate(judged))
    state.model.train()
    if config.best_metric not in numbers:
        raise ConfigError(
            f"train.best_metric is {config.best_metric!r}, which the evaluation does not give; "
            f"it gives {', '.join(sorted(numbers))}"
        )
    return numbers


def _note_best(state: TrainState, numbers: Mapping[str, float], config: TrainConfig) -> bool:
    value = numbers[config.best_metric]
    sign = 1.0 if config.best_is == "highest" else -1.0
    if math.isfinite(value) and (state.best is None or sign * value > sign * state.best.value):
        state.best = Best(state.step, value)
        return True
    return False


def _identity(run: Run, config: TrainConfig, optim: OptimConfig) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued: what shapes the weights, not what is written when."""
    train = asdict(config)
    for name in ("log_every", "evaluate_every", "save_every", "keep", "best_metric", "best_is"):
        del train[name]
    if optim.schedule == "constant":
        del train["steps"]  # A constant rate lets a finished run be made longer.
    return {"train": train, "optim": asdict(optim), **run.describes}


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Hold a Ctrl-C back until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only.
        return
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        signal.raise_signal(signal.SIGINT)
