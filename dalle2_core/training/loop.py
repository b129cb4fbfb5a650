"""train(): read it from top to bottom. It serves every model of this package."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import nn

from dalle2_core.errors import ConfigError
from dalle2_core.training.ahead import on_device
from dalle2_core.training.checkpoint import Checkpoints
from dalle2_core.training.config import Run, StepReport, TrainConfig
from dalle2_core.training.curves import plot_curves
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.metrics_log import Logs, open_logs
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.parallel import Replicated, Sharded, place_model
from dalle2_core.training.seeding import seeded_layers
from dalle2_core.training.state import Best, MetricTotals, TrainState
from dalle2_core.training.step import refuse_to_cut, take_step
from dalle2_core.types import SizedBatch, Trainable

__all__ = ["Run", "StepReport", "TrainConfig", "train"]

B = TypeVar("B", bound=SizedBatch)


def train(
    model: Trainable[B],
    stream: Callable[[int], Iterator[B]],
    run: Run,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    show: Callable[[Any, int], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    processes: Processes | None = None,
) -> TrainState:
    """Train until `config.steps` optimizer steps are done. The same call again resumes.

    Resume is exact: killed at any moment and called again, a CPU run ends with the same bits as one that was
    never disturbed. Another number of processes or another `config.accumulate` changes the result by rounding (and
    the masks of dropout), so a run may be continued with others.

    Args:
        model: a torch.nn.Module with `loss(batch, draws)`, on the device where it is to be trained.
        stream: given the number of steps done, yields this process's rows of the batches from there on, without
            end: rows `processes.share(config.batch_size)` of each. The order must be a function of that number alone.
        evaluate: given a model in eval mode, without gradients, returns numbers for the log. It must hold
            `config.best_metric`. The first process calls it twice: with the averaged weights, which decide what is
            best, and with the trained ones.
        show: given the averaged model in eval mode, without gradients, and the step, leaves something to look at. The
            first process calls it every `config.show_every` steps; for a step from which a run resumes, again.
        on_step: called after every step.
        processes: None takes those that torchrun started, or this one alone.

    Returns:
        The state after the last step; `state.averaged` is the model to keep. With `config.parallel` "fsdp" the state
        holds this process's share, in a copy; `model` is empty until the end, and has the trained weights then.

    Raises:
        NonFiniteLoss: the loss or the gradient is NaN or infinite; the checkpoints are all from before.
        CheckpointError: the folder belongs to another run, or the disk is full.
        ConfigError: a setting cannot be, or a logger's package is missing.
        KeyboardInterrupt: after a checkpoint of the last finished step was written.
    """
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    together = processes or join_processes(device)
    refuse_to_cut(model, config, together)
    placed = place_model(model, config, together)
    state = TrainState(placed.model, make_optimizer(placed.model, optim), placed.ema)
    # What the first process does decides: the others may know nothing to judge by.
    judges, shows = together.gather((evaluate is not None, show is not None))[0]

    identity = run_identity(run.describes, config, optim)
    checkpoints = Checkpoints(run.checkpoints, identity, config.keep, run.on_saved, run.grown)
    if together.is_first:
        checkpoints.sweep()
    together.wait()
    changes = checkpoints.resume(state, together)
    state.go_on(config.steps, changes, data_grew=not run.grown.isdisjoint(changes))
    saved_step = state.step
    logs = open_logs(run, config.loggers, state.logged_steps()) if together.is_first else Logs([])

    state.model.train()
    batches = on_device(stream(state.step), device)
    # Sharded, a checkpoint takes all: an interruption waits until all have heard of it, at the same step.
    held = ExitStack()
    caught = held.enter_context(_interrupt_deferred()) if state.sharded else []
    try:
        while True:
            is_last = state.step >= config.steps

            # First what is due after the last step: an interrupted evaluation is made up for on resume.
            evaluates = state.step > state.evaluated_step and (is_last or state.step % config.evaluate_every == 0)
            is_best = False
            if judges and evaluates:
                judged = _evaluate(state, placed, evaluate, config, device)
                with _interrupt_deferred():
                    is_best = "valid" in judged and _note_best(state, judged["valid"], config)
                    for kind, numbers in judged.items():
                        logs.write(kind, state.step, state.samples, numbers)
                    state.evaluated_step = state.step
                is_best = together.gather(is_best)[0]
            if shows and _shows(state.step, config):
                _show(state, placed, show, config, device)
            saves = state.step > saved_step and (is_last or state.step % config.save_every == 0)
            if is_best or saves:
                checkpoints.save(state, together)
                saved_step = state.step
            if evaluates or saves or _shows(state.step, config):
                together.wait()
            if is_last:
                break
            if state.sharded and together.add_up({"interrupted": len(caught)})["interrupted"]:
                raise KeyboardInterrupt

            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                raise ConfigError(
                    f"the stream of batches ended after {state.step} of {config.steps} steps; it must be endless"
                ) from None

            # An interruption waits here, so that no checkpoint ever holds half a step.
            with _interrupt_deferred():
                rate = learning_rate(state.step + 1, config.steps, optim)
                loss = take_step(state, placed.loss_pass, batch, rate, config, optim, together)
                seconds = time.perf_counter() - started
                state.seconds += seconds
                if state.step % config.log_every == 0 or state.step == config.steps:
                    timing = {"learning_rate": rate, "seconds": state.seconds}
                    logs.write("train", state.step, state.samples, state.tally.means() | timing)
                    state.tally = MetricTotals()
            if on_step is not None:
                on_step(StepReport(state.step, config.steps, state.samples, loss, rate, seconds))
    except KeyboardInterrupt as interruption:
        # Copies are saved without the others: they were interrupted as well, and all hold the same state. Shards are
        # where all agreed, and not where one is gone, which is the cause then.
        if state.step > saved_step and not (state.sharded and interruption.__cause__):
            checkpoints.save(state, together)
        raise
    finally:
        batches.close()
        logs.close()
        held.close()
    placed.finish()
    if together.is_first:
        plot_curves(run.metrics, run.curves)
    return state


def _evaluate(
    state: TrainState,
    placed: Replicated | Sharded,
    evaluate: Callable[[Any], Mapping[str, float]] | None,
    config: TrainConfig,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Numbers of the averaged model ("valid") and, where there is an average, of the trained one ("online").

    None of them in all processes but the first. The draws of an evaluation never reach the training.
    """
    models = {"valid": state.averaged} | ({"online": state.model} if state.ema is not None else {})
    judged = {}
    for kind, module in models.items():
        with placed.whole(module) as model:
            if model is None:
                continue
            assert evaluate is not None
            model.eval()
            with torch.no_grad(), seeded_layers(config.seed, state.step, device, "evaluate"):
                judged[kind] = dict(evaluate(model))
    state.model.train()
    if judged and config.best_metric not in judged["valid"]:
        raise ConfigError(
            f"train.best_metric is {config.best_metric!r}, which the evaluation does not give; "
            f"it gives {', '.join(sorted(judged['valid']))}"
        )
    return judged


def _shows(step: int, config: TrainConfig) -> bool:
    """Whether pictures are due: after the last step, and at every interval from its first end on."""
    return step > 0 and (step >= config.steps or step % (config.show_every or config.evaluate_every) == 0)


def _show(
    state: TrainState,
    placed: Replicated | Sharded,
    show: Callable[[Any, int], None] | None,
    config: TrainConfig,
    device: torch.device,
) -> None:
    """As `_evaluate`, of the averaged model, for what it leaves behind."""
    with placed.whole(state.averaged) as model:
        if model is not None:
            assert show is not None
            model.eval()
            with torch.no_grad(), seeded_layers(config.seed, state.step, device, "show"):
                show(model, state.step)
    state.model.train()


def _note_best(state: TrainState, numbers: Mapping[str, float], config: TrainConfig) -> bool:
    value = numbers[config.best_metric]
    sign = 1.0 if config.best_is == "highest" else -1.0
    if math.isfinite(value) and (state.best is None or sign * value > sign * state.best.value):
        state.best = Best(state.step, value)
        return True
    return False


def run_identity(describes: Mapping[str, Any], config: TrainConfig, optim: OptimConfig) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued: what shapes the weights, not what is written when."""
    train = asdict(config)
    for name in (
        "accumulate",
        "log_every",
        "evaluate_every",
        "save_every",
        "show_every",
        "keep",
        "best_metric",
        "best_is",
        "loggers",
        "parallel",
    ):
        del train[name]
    if optim.schedule == "constant":
        del train["steps"]  # A constant rate lets a finished run be made longer.
    rates = asdict(optim)
    if optim.decay_matrices_only:
        del rates["decay_matrices_only"]  # Absent rather than true: older runs go on without it.
    if optim.schedule != "cooldown":
        del rates["cooldown_fraction"]
    return {"train": train, "optim": rates, **describes}


@contextmanager
def _interrupt_deferred() -> Iterator[list[int]]:
    """Hold a Ctrl-C, or a scheduler's SIGTERM where that is an interruption, back until the end of the block.

    Gives the list of those that came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []  # Python delivers signals to the main thread only.
        return
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What ends the process at once, or does nothing, is left to do so.
    deferred = {number: handler for number, handler in before.items() if callable(handler)}
    for number in deferred:
        signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    except Exception as problem:
        if caught:  # Another process left before this one heard of it: an interruption, too.
            raise KeyboardInterrupt from problem
        raise
    finally:
        for number, handler in deferred.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
