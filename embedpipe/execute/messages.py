"""Messages between an executor and workers in other processes, whatever the transport."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import EmbedpipeError
from ..progress import Progress, TaskReport
from ..scarcity import lack_of, out_of


@dataclass(frozen=True, slots=True)
class Asks:
    """The worker requests a task; the reply is one, or None if there are no more."""


@dataclass(frozen=True, slots=True)
class WorkerStep:
    """Progress in the task of that number."""

    number: int
    step: Progress


@dataclass(frozen=True, slots=True)
class Done:
    """The task is finished and committed."""

    number: int
    report: TaskReport


@dataclass(frozen=True, slots=True)
class Refused:
    """The task failed with an InputError of this text."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker raised; `error` is an EmbedpipeError, or None for a bug, with its traceback in `trace`."""

    error: EmbedpipeError | None
    trace: str


Message = Asks | WorkerStep | Done | Refused | Failed


class RemoteTraceback(Exception):
    """A worker's traceback, as the cause of the error raised here."""


def attempt(work: Callable[[], None]) -> Failed | None:
    """Call it; returns any exception as a message for the executor."""
    try:
        work()
    except EmbedpipeError as problem:
        return Failed(problem, traceback.format_exc())
    except Exception as problem:
        if (lack := lack_of(problem)) is not None:
            return Failed(out_of(lack), traceback.format_exc())
        return Failed(None, traceback.format_exc())
    return None
