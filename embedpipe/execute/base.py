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
    """One unit of work and of commit: an input shard. `payload` is whatever the work needs to know of it."""

    number: int
    name: str
    payload: Any


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task that was given up on, and why, in one line; the others went on."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: the sum of the reports of all finished tasks, and the tasks that were set aside."""

    report: TaskReport
    failed_tasks: tuple[FailedTask, ...]

    def require_all(self) -> None:
        """For a job that is nothing without all of its tasks. Raises WorkerDied where one was set aside."""
        for aside in self.failed_tasks:
            raise WorkerDied(f"{aside.task.name}: {aside.reason}", "What is done is kept: run the same command again")


class TaskContext(Protocol):
    """A worker's side of its executor: where tasks come from and where it says what became of them.

    A worker may ask for its next task before it is done with the last: each one that it was given ends by `done` or
    `refuse`. All methods may be called from any thread, `next` from one at a time.
    """

    def next(self) -> Task | None:
        """The next task, once there is one for this worker; None when there are no more.

        It may have to wait until the worker is done with all it has: a worker that asks early asks on a thread.
        """
        ...

    def tell(self, task: Task, step: Progress) -> None:
        """A step forward in a task."""
        ...

    def done(self, task: Task, report: TaskReport) -> None:
        """The task is finished and committed."""
        ...

    def refuse(self, task: Task, problem: InputError) -> None:
        """The task cannot be done: it is set aside, the others go on."""
        ...


WorkerLoop = Callable[[TaskContext], None]


def one_by_one(do: Callable[[Task, Listener], TaskReport]) -> WorkerLoop:
    """A worker that is done with each task before it asks for the next; an InputError of `do` sets the task aside."""

    def work(desk: TaskContext) -> None:
        while (task := desk.next()) is not None:
            do_one(do, desk, task)

    return work


def do_one(do: Callable[[Task, Listener], TaskReport], desk: TaskContext, task: Task) -> None:
    """Do a task and tell the desk; an InputError of `do` sets it aside."""
    try:
        report = do(task, lambda step: desk.tell(task, step))
    except InputError as problem:
        desk.refuse(task, problem)
    else:
        desk.done(task, report)


class WorkerFactory(Protocol):
    """A picklable recipe for a worker."""

    def start(self, worker: int) -> WorkerLoop:
        """Make worker number `worker` (0-based) ready, once in its process: load the model, take the device.

        The worker takes tasks until its desk has no more, and commits what it makes; doing a task twice does no harm.
        What it raises ends the run.
        """
        ...


_Made = TypeVar("_Made")


class Tasks(Protocol):
    """Tasks to do, such as a list. Each is drawn when it is handed out; `len` says how many there are at most."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Task]: ...


class Executor(Protocol):
    """Runs tasks until each is finished or set aside."""

    def ready(self) -> AbstractContextManager[None]:
        """What the executor needs stays up while the block lasts; without it, for each call anew."""
        ...

    def call(self, function: Callable[..., _Made], *arguments: Any) -> _Made:
        """`function(*arguments)`, run where a worker would be, on a device like its. Both are picklable."""
        ...

    def run(self, work: WorkerFactory, tasks: Tasks, listen: Listener) -> Outcome:
        """Raises what a worker raised; finished tasks stay finished."""
        ...
