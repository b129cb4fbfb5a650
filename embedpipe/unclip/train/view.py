"""What a training reports while it prepares and steps; whoever calls it decides how to show that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dalle2_core.training import Processes, StepReport, TrainConfig, join_processes
from embedpipe.progress import Listener, silent

from ..device import default_device

OnStep = Callable[[StepReport], None]


@contextlib.contextmanager
def _unseen(what: str) -> Iterator[Listener]:
    yield silent


@contextlib.contextmanager
def _without_steps(what: str, config: TrainConfig) -> Iterator[OnStep | None]:
    yield None


@dataclass(frozen=True, slots=True)
class TrainingView:
    """Opens the displays of a training; without arguments it shows nothing.

    preparing: of what comes before the first step, by its name. steps: of the steps of what is trained, by its name.
    """

    preparing: Callable[[str], AbstractContextManager[Listener]] = _unseen
    steps: Callable[[str, TrainConfig], AbstractContextManager[OnStep | None]] = _without_steps

    @classmethod
    def of(cls, on_step: OnStep | None, listen: Listener) -> TrainingView:
        """One that calls `on_step` with each step's report, and `listen` with the progress of what comes before."""
        return cls(lambda what: contextlib.nullcontext(listen), lambda what, config: contextlib.nullcontext(on_step))


def join_training(device: str | None, view: TrainingView) -> tuple[Processes, str, TrainingView]:
    """The processes that train (torchrun's, or this one alone), this one's device, and its view: the first one's."""
    processes = join_processes(device or default_device())
    on = str(processes.device) if processes.world > 1 else device or default_device()
    return processes, on, view if processes.is_first else TrainingView()
