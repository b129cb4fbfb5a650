"""One process per device on this machine. A worker that dies is replaced; a task that kills three is set aside."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NoReturn, TypeVar

from ..errors import EmbedpipeError, InputError, WorkerDied
from ..progress import Listener, Progress, Tally, TaskReport
from .base import Outcome, SetAside, Task, Work

ATTEMPTS = 3

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Ready:
    """The worker can take a task."""


@dataclass(frozen=True, slots=True)
class _Done:
    report: TaskReport


@dataclass(frozen=True, slots=True)
class _Refused:
    """The task cannot be done, by an InputError of this text."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """The worker raised; `error` is ours, or None for a bug, whose traceback `trace` holds."""

    error: EmbedpipeError | None
    trace: str


class RemoteTraceback(Exception):
    """The traceback of a worker, as the cause of the error raised here."""


def _serve(work: Work, worker: int, connection: Connection, parent: int) -> None:
    """The life of a worker process: get ready, then task after task until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _end)

    def listen(progress: Progress) -> None:
        if os.getppid() != parent:
            os._exit(1)
        connection.send(progress)

    do = _attempt(work.start, worker)
    # A closed pipe: the parent needs no more, or is gone.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while not isinstance(do, _Failed):
            connection.send(_Ready())
            task: Task = connection.recv()
            report = _attempt(do, task, listen)
            if not isinstance(report, _Failed):
                connection.send(_Done(report))
            elif isinstance(report.error, InputError):
                connection.send(_Refused(str(report.error)))
            else:
                do = report
        connection.send(do)


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # not at once, so that a half-written file is removed on the way out


def _attempt(call: Callable[..., _Result], *arguments: Any) -> _Result | _Failed:
    """What `call` returns, or what it raised: whatever that is, it must reach the parent."""
    try:
        return call(*arguments)
    except EmbedpipeError as problem:
        return _Failed(problem, traceback.format_exc())
    except Exception:
        return _Failed(None, traceback.format_exc())


@dataclass(slots=True)
class _Seat:
    """A worker process, the pipe to it, the task it has in hand and what it said of that."""

    number: int
    process: Any
    connection: Connection
    task: Task | None = None
    tally: Tally | None = None


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """Runs tasks on `workers` processes, each started fresh (spawn: CUDA does not survive a fork)."""

    workers: int

    def run(self, work: Work, tasks: Sequence[Task], listen: Listener) -> Outcome:
        """See `Executor.run`."""
        crew = _Crew(work, tasks, listen)
        try:
            for number in range(min(self.workers, len(tasks))):
                crew.hire(number)
            while crew.seats:
                crew.step()
        finally:
            crew.dismiss()
        return Outcome(crew.total, tuple(crew.set_aside))


class _Crew:
    """The state of one run."""

    def __init__(self, work: Work, tasks: Sequence[Task], listen: Listener) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._work = work
        self._waiting = deque(tasks)
        self._deaths: dict[int, int] = {}
        self._idle_deaths = 0
        self._listen = listen
        self.seats: dict[Connection, _Seat] = {}
        self.total = TaskReport()
        self.set_aside: list[SetAside] = []

    def hire(self, number: int) -> None:
        """Start a worker process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(self._work, number, theirs, os.getpid()),
            name=f"embedpipe-worker-{number}",
            daemon=True,
        )
        # Ctrl-C reaches the whole group; a worker that is still importing would answer it with a traceback.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
        theirs.close()  # so that reading fails when the worker is gone
        self.seats[ours] = _Seat(number, process, ours)

    def step(self) -> None:
        """Wait for any worker to say something, and answer."""
        for ready in wait(list(self.seats)):
            assert isinstance(ready, Connection)
            seat = self.seats[ready]
            try:
                message = seat.connection.recv()
            except (EOFError, OSError):  # gone, perhaps in the middle of a message
                self._died(seat)
                continue
            self._answer(seat, message)

    def _answer(self, seat: _Seat, message: Any) -> None:
        if isinstance(message, Progress):
            assert seat.tally is not None
            self._listen(seat.tally.hear(message))
        elif isinstance(message, _Done):
            assert seat.tally is not None
            self.total += message.report
            seat.task = None
            self._listen(seat.tally.finish(message.report))
        elif isinstance(message, _Refused):
            assert seat.task is not None
            assert seat.tally is not None
            self.set_aside.append(SetAside(seat.task, message.reason))
            seat.task = None
            self._listen(seat.tally.give_up(tasks=1))
        elif isinstance(message, _Failed):
            if message.error is not None:
                raise message.error from RemoteTraceback(message.trace)
            last = message.trace.strip().splitlines()[-1]
            raise WorkerDied(
                f"worker {seat.number} failed: {last}", "Run with --debug and report it"
            ) from RemoteTraceback(message.trace)
        else:
            self._hand_out(seat)

    def _hand_out(self, seat: _Seat) -> None:
        if self._waiting:
            seat.task = self._waiting.popleft()
            seat.tally = Tally(seat.number, seat.task.name)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is seen at the next wait
                seat.connection.send(seat.task)
        else:
            self._leave(seat)

    def _leave(self, seat: _Seat) -> None:
        del self.seats[seat.connection]
        seat.connection.close()
        seat.process.join()

    def _died(self, seat: _Seat) -> None:
        """Replace a dead worker; its task goes back to the front, or aside at its third victim."""
        self._leave(seat)
        how = _exit_reason(seat.process.exitcode)
        if seat.task is None:
            self._idle_deaths += 1
            if self._idle_deaths >= ATTEMPTS:
                raise WorkerDied(
                    f"workers die before they can start ({how})", "Check memory, or try `--workers 1` to see the cause"
                )
        else:
            assert seat.tally is not None
            deaths = self._deaths[seat.task.number] = self._deaths.get(seat.task.number, 0) + 1
            if deaths >= ATTEMPTS:
                self.set_aside.append(SetAside(seat.task, f"{deaths} workers died on it, the last one {how}"))
            else:
                self._waiting.appendleft(seat.task)
            self._listen(seat.tally.give_up(tasks=int(deaths >= ATTEMPTS)))
        if self._waiting:
            self.hire(seat.number)

    def dismiss(self) -> None:
        """End whatever still runs: after the last task there is nothing, after an exception all of them."""
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
