"""The inline executor: all tasks in this process, one worker. The default for one device; also for debugging."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import InputError
from ..progress import Listener, Progress, Tally, TaskReport
from .base import FailedTask, Outcome, Task, Tasks, WorkerFactory

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class InlineExecutor:
    """Runs tasks in this process. `workers` is accepted for compatibility with the other executors, and ignored."""

    workers: int = 1

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """See `Executor.ready`."""
        return contextlib.nullcontext()

    def call(self, function: Callable[..., _Made], *arguments: Any) -> _Made:
        """See `Executor.call`."""
        return function(*arguments)

    def run(self, work: WorkerFactory, tasks: Tasks, listen: Listener) -> Outcome:
        """See `Executor.run`."""
        desk = _Desk(tasks, listen)
        if tasks:
            work.start(0)(desk)
        return Outcome(desk.total, tuple(desk.failed_tasks))


class _Desk:
    def __init__(self, tasks: Tasks, listen: Listener) -> None:
        self.total = TaskReport()
        self.failed_tasks: list[FailedTask] = []
        self._coming = iter(tasks)
        self._tallies: dict[int, Tally] = {}
        self._listen = listen
        self._one_at_a_time = threading.Lock()  # so that listeners need not be thread-safe

    def next(self) -> Task | None:
        """See `TaskContext`."""
        task = next(self._coming, None)
        if task is not None:
            self._tallies[task.number] = Tally(0, task.name)
        return task

    def tell(self, task: Task, step: Progress) -> None:
        """See `TaskContext`."""
        with self._one_at_a_time:
            self._listen(self._tallies[task.number].hear(step))

    def done(self, task: Task, report: TaskReport) -> None:
        """See `TaskContext`."""
        with self._one_at_a_time:
            self.total += report
            self._listen(self._tallies.pop(task.number).finish(report))

    def refuse(self, task: Task, problem: InputError) -> None:
        """See `TaskContext`."""
        with self._one_at_a_time:
            self.failed_tasks.append(FailedTask(task, str(problem)))
            self._listen(self._tallies.pop(task.number).give_up(tasks=1))
