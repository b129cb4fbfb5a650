"""Messages between an executor and workers in other processes, whatever the transport."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import EmbedpipeError
from ..progress import Progress, TaskReport


@dataclass(frozen=True, slots=True)
class Asks:
    """The worker can take a task; it is sent one, or None when there are no more."""


@dataclass(frozen=True, slots=True)
class WorkerStep:
    """A step forward in the task of that number."""

    number: int
    step: Progress


@dataclass(frozen=True, slots=True)
class Done:
    """The task is finished and committed."""

    number: int
    report: TaskReport


@dataclass(frozen=True, slots=True)
class Refused:
    """The task cannot be done, by an InputError of this text."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker raised; `error` is ours, or None for a bug, whose traceback `trace` holds."""

    error: EmbedpipeError | None
    trace: str


Message = Asks | WorkerStep | Done | Refused | Failed


class RemoteTraceback(Exception):
    """The traceback of a worker, as the cause of the error raised here."""


def attempt(work: Callable[[], None]) -> Failed | None:
    """Do it; returns what was raised: whatever that is, it must reach the executor."""
    try:
        work()
    except EmbedpipeError as problem:
        return Failed(problem, traceback.format_exc())
    except Exception:
        return Failed(None, traceback.format_exc())
    return None
