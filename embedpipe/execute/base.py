"""What every executor offers: tasks handed out one at a time to workers that come free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..progress import Listener, TaskReport


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work and of commit: an input shard. `payload` is whatever the work needs to know of it."""

    number: int
    name: str
    payload: Any


@dataclass(frozen=True, slots=True)
class SetAside:
    """A task that was given up on, and why, in one line; the others went on."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: the sum of the reports of all finished tasks, and the tasks that were set aside."""

    report: TaskReport
    set_aside: tuple[SetAside, ...]


Worker = Callable[[Task, Listener], TaskReport]


class Work(Protocol):
    """A picklable recipe for a worker."""

    def start(self, worker: int) -> Worker:
        """Make worker number `worker` (0-based) ready, once in its process: load the model, take the device.

        The worker commits what it makes; doing a task twice does no harm. An InputError sets the task aside; any other
        EmbedpipeError ends the run.
        """
        ...


class Executor(Protocol):
    """Runs tasks until each is finished or set aside."""

    def run(self, work: Work, tasks: Sequence[Task], listen: Listener) -> Outcome:
        """Raises what a worker raised (other than InputError); finished tasks stay finished."""
        ...
