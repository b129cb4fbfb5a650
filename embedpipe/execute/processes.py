"""The process executor: one worker per device. Dead workers are replaced; a task that kills three is set aside."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NoReturn, TypeVar

from ..errors import InputError
from ..imports import uncollected
from ..lock import Held, held, inherit
from ..openmp import bounded_in_children
from ..pillow import ignore_metadata_warnings
from ..progress import Listener, Progress, TaskReport
from ..scarcity import telling
from .base import Outcome, Task, Tasks, WorkerFactory
from .messages import Asks, Done, Refused, WorkerStep, attempt
from .task_tracker import InFlight, TaskTracker


class _ParentGone(BaseException):
    """The parent process is gone. Not an Exception, so that workers do not catch it."""


class _PipeDesk:
    """The task context of a worker process. orphaned: called if the parent is gone while a shard is in progress."""

    def __init__(self, connection: Connection, parent: int, orphaned: Callable[[], object]) -> None:
        self._connection = connection
        self._parent = parent
        self._orphaned = orphaned
        self._sending = threading.Lock()

    def next(self) -> Task | None:
        """See `TaskContext`."""
        self._send(Asks())
        try:
            task: Task | None = self._connection.recv()
        except (EOFError, OSError) as problem:
            raise _ParentGone from problem
        return task

    def tell(self, task: Task, step: Progress) -> None:
        """See `TaskContext`."""
        if os.getppid() != self._parent:
            self._orphaned()
        self._send(WorkerStep(task.number, step))

    def done(self, task: Task, report: TaskReport) -> None:
        """See `TaskContext`."""
        self._send(Done(task.number, report))

    def refuse(self, task: Task, problem: InputError) -> None:
        """See `TaskContext`."""
        self._send(Refused(task.number, str(problem)))

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError as problem:
            raise _ParentGone from problem


def _serve(pickled: bytes, worker: int, connection: Connection, parent: int, locked: Held) -> None:
    """The main function of a worker process: prepare, then run tasks until there are no more or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, _end)
    ignore_metadata_warnings()
    inherit(locked)
    desk = _PipeDesk(connection, parent, lambda: os._exit(1))
    try:
        with contextlib.suppress(_ParentGone, OSError):
            with uncollected():
                work: WorkerFactory = pickle.loads(pickled)
            failed = attempt(lambda: work.start(worker)(desk))
            if failed is not None:
                connection.send(failed)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # no temporary files are left, and libraries are shutting down


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # not os._exit, so that partially written files are removed


@dataclass(slots=True)
class _Seat:
    """A worker process, the pipe to it, and its tasks in flight."""

    hands: InFlight
    process: Any
    connection: Connection


_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """Runs tasks on `workers` processes, each started fresh (spawn: CUDA does not survive a fork)."""

    workers: int

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """See `Executor.ready`."""
        return contextlib.nullcontext()

    def call(self, function: Callable[..., _Made], *arguments: Any) -> _Made:
        """See `Executor.call`."""
        return function(*arguments)

    def run(self, work: WorkerFactory, tasks: Tasks, listen: Listener) -> Outcome:
        """See `Executor.run`."""
        ledger = TaskTracker(tasks, listen)
        crew = _Crew(work, ledger)
        try:
            for number in range(min(self.workers, len(tasks))):
                crew.hire(number)
            while crew.seats:
                crew.step()
        finally:
            crew.dismiss()
        return ledger.outcome()


class _Crew:
    """The worker processes of one run."""

    def __init__(self, work: WorkerFactory, ledger: TaskTracker) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._work = pickle.dumps(work)  # so that the worker controls how its imports (torch) are loaded
        self._ledger = ledger
        self.seats: dict[Connection, _Seat] = {}

    def hire(self, number: int) -> None:
        """Start a worker process."""
        with telling():
            ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(self._work, number, theirs, os.getpid(), held()),
            name=f"embedpipe-worker-{number}",
            daemon=True,
        )
        # Ctrl-C reaches the whole group; a worker that is still importing would print a traceback.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with bounded_in_children(), telling():
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
        theirs.close()  # so that reads fail once the worker is gone
        self.seats[ours] = _Seat(InFlight(number), process, ours)

    def step(self) -> None:
        """Wait for a message from any worker, and reply."""
        for ready in wait(list(self.seats)):
            assert isinstance(ready, Connection)
            seat = self.seats[ready]
            try:
                message = seat.connection.recv()
            except (EOFError, OSError):  # dead, perhaps in the middle of a message
                self._gone(seat)
                continue
            self._ledger.hear(seat.hands, message)
            others = (other.hands for other in self.seats.values() if other is not seat)
            answer = self._ledger.answer(seat.hands, others)
            if answer is not None:
                with contextlib.suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # its death is noticed at the next wait
                    seat.connection.send(answer.task)

    def _gone(self, seat: _Seat) -> None:
        del self.seats[seat.connection]
        seat.connection.close()
        seat.process.join()
        others = (other.hands for other in self.seats.values())
        if self._ledger.gone(seat.hands, _exit_reason(seat.process.exitcode), others):
            self.hire(seat.hands.number)

    def dismiss(self) -> None:
        """End all running workers: none after the last task, all after an exception."""
        for seat in self.seats.values():
            seat.process.terminate()
        for seat in self.seats.values():
            seat.process.join(timeout=5)
            if seat.process.is_alive():
                seat.process.kill()
                seat.process.join()
            seat.connection.close()


def _exit_reason(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"with exit code {exitcode}"
