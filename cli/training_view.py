"""How the commands that train show what they do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedpipe.progress import Listener, silent

from . import display

if TYPE_CHECKING:
    from dalle2_core.training import Processes, StepReport, TrainConfig

    from .training_job import TrainingPlan


@contextlib.contextmanager
def _unseen(what: str) -> Iterator[Listener]:
    yield silent


@contextlib.contextmanager
def _without_steps(what: str, config: TrainConfig) -> Iterator[Callable[[StepReport], None] | None]:
    yield None


@dataclass(frozen=True, slots=True)
class TrainingView:
    """Opens the displays of a training; without arguments it shows nothing.

    preparing: of what comes before the first step, by its name. steps: of the steps of what is trained, by its name.
    """

    preparing: Callable[[str], AbstractContextManager[Listener]] = _unseen
    steps: Callable[[str, TrainConfig], AbstractContextManager[Callable[[StepReport], None] | None]] = _without_steps


def shown(command: str, together: Processes | None = None) -> TrainingView:
    """The displays of a command on stderr: of its first process, which alone speaks; None where there is one alone."""
    if together is not None and not together.is_first:
        return TrainingView()

    @contextlib.contextmanager
    def steps(what: str, config: TrainConfig) -> Iterator[Callable[[StepReport], None] | None]:
        title = f"{command} {what}".rstrip()
        begun: int | None = None
        with display.progress(title, "samples", "steps") as view:

            def on_step(report: StepReport) -> None:
                nonlocal begun
                if begun is None:
                    begun = report.step - 1
                    if begun:
                        view.line(f"{title}: goes on from step {begun:,} of {report.steps:,}")
                view.at_step(report.step, report.steps, config.batch_size, report.loss)

            yield on_step
            if begun is None:
                view.line(f"{title}: all {config.steps:,} steps were done before; nothing is left to train")

    return TrainingView(display.progress, steps)


def planned(plan: TrainingPlan, recipe: Any) -> dict[str, Any]:
    """What `--dry-run` prints: the plan, and the resolved recipe as it is."""
    return {"plan": display.plain(plan), **display.plain(recipe)}
