"""The executor interface: tasks handed out one at a time to workers that request them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..errors import InputError, WorkerDied
from ..progress import Listener, Progress, TaskReport


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work and of commit: an input shard. `payload` is whatever the worker needs.

    careful: a worker died on it before. What may have killed it, such as a decoder, belongs in a process of its own.
    """

    number: int
    name: str
    payload: Any
    careful: bool = False


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A failed task, and the reason in one line; the others continued."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run: the sum of the reports of all finished tasks, and the failed tasks."""

    report: TaskReport
    failed_tasks: tuple[FailedTask, ...]

    def require_all(self) -> None:
        """For a job that needs all of its tasks. Raises WorkerDied if one failed."""
        for aside in self.failed_tasks:
            raise WorkerDied(f"{aside.task.name}: {aside.reason}", "What is done is kept: run the same command again")


class TaskContext(Protocol):
    """A worker's interface to its executor: the source of tasks and the sink of their outcomes.

    A worker may request its next task before the last is finished: each task ends with `done` or `refuse`. All methods
    may be called from any thread, `next` from one at a time.
    """

    def next(self) -> Task | None:
        """The next task, once there is one for this worker; None if there are no more.

        This may block until the worker has finished all its tasks: call it on another thread to request ahead.
        """
        ...

    def tell(self, task: Task, step: Progress) -> None:
        """Report progress in a task."""
        ...

    def done(self, task: Task, report: TaskReport) -> None:
        """The task is finished and committed."""
        ...

    def refuse(self, task: Task, problem: InputError) -> None:
        """The task cannot be done: it counts as failed, the others continue."""
        ...


WorkerLoop = Callable[[TaskContext], None]


def one_by_one(do: Callable[[Task, Listener], TaskReport]) -> WorkerLoop:
    """A worker that finishes each task before requesting the next; an InputError from `do` fails the task."""

    def work(desk: TaskContext) -> None:
        while (task := desk.next()) is not None:
            do_one(do, desk, task)

    return work


def do_one(do: Callable[[Task, Listener], TaskReport], desk: TaskContext, task: Task) -> None:
    """Do a task and report its outcome; an InputError from `do` fails it."""
    try:
        report = do(task, lambda step: desk.tell(task, step))
    except InputError as problem:
        desk.refuse(task, problem)
    else:
        desk.done(task, report)


class WorkerFactory(Protocol):
    """A picklable recipe for a worker."""

    def start(self, worker: int) -> WorkerLoop:
        """Prepare worker number `worker` (0-based), once in its process: load the model, take the device.

        The worker takes tasks until its context has no more, and commits its results; repeating a task is harmless. An
        exception from it ends the run.
        """
        ...


_Made = TypeVar("_Made")


class Tasks(Protocol):
    """Tasks to do, such as a list. They are drawn lazily, when handed out; `len` is an upper bound."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Task]: ...


class Executor(Protocol):
    """Runs tasks until each is finished or failed."""

    def ready(self) -> AbstractContextManager[None]:
        """Keep the executor's resources up within the block; without it, each call sets them up anew."""
        ...

    def call(self, function: Callable[..., _Made], *arguments: Any) -> _Made:
        """Run `function(*arguments)` where a worker would run, on the same kind of device. Both are picklable."""
        ...

    def run(self, work: WorkerFactory, tasks: Tasks, listen: Listener) -> Outcome:
        """Run the tasks. Raises what a worker raised; finished tasks stay finished."""
        ...
