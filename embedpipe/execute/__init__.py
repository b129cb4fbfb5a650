"""Executors: who hands tasks to workers. EXECUTORS maps a name to its executor."""

from __future__ import annotations

from ..errors import InputError, did_you_mean
from .base import Desk, Executor, Outcome, SetAside, Task, Work, Worker, one_by_one
from .inline import InlineExecutor
from .processes import ProcessExecutor

EXECUTORS: dict[str, type[InlineExecutor] | type[ProcessExecutor]] = {
    "inline": InlineExecutor,
    "processes": ProcessExecutor,
}

__all__ = [
    "EXECUTORS",
    "Desk",
    "Executor",
    "Outcome",
    "SetAside",
    "Task",
    "Work",
    "Worker",
    "one_by_one",
    "open_executor",
]


def open_executor(name: str, workers: int) -> Executor:
    """The executor called `name` with that many workers; `auto` is inline for one worker and processes for more."""
    if name == "auto":
        name = "inline" if workers == 1 else "processes"
    if name not in EXECUTORS:
        raise InputError(f"no executor {name!r}", did_you_mean(name, EXECUTORS))
    return EXECUTORS[name](workers)
