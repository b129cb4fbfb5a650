"""One process per device on this machine. A worker that dies is replaced; a task that kills three is set aside."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NoReturn

from ..errors import EmbedpipeError, InputError, WorkerDied
from ..progress import Listener, Progress, Tally, TaskReport
from .base import Outcome, SetAside, Task, Work

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Asks:
    """The worker can take a task; it is sent one, or None when there are no more."""


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    step: Progress


@dataclass(frozen=True, slots=True)
class _Done:
    number: int
    report: TaskReport


@dataclass(frozen=True, slots=True)
class _Refused:
    """The task cannot be done, by an InputError of this text."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """The worker raised; `error` is ours, or None for a bug, whose traceback `trace` holds."""

    error: EmbedpipeError | None
    trace: str


class RemoteTraceback(Exception):
    """The traceback of a worker, as the cause of the error raised here."""


class _ParentGone(BaseException):
    """There is nobody left to work for. Not an Exception: no worker has a use for it."""


class _PipeDesk:
    """The desk of a worker process."""

    def __init__(self, connection: Connection, parent: int) -> None:
        self._connection = connection
        self._parent = parent
        self._sending = threading.Lock()

    def next(self) -> Task | None:
        """See `Desk`."""
        self._send(_Asks())
        try:
            task: Task | None = self._connection.recv()
        except (EOFError, OSError) as problem:
            raise _ParentGone from problem
        return task

    def tell(self, task: Task, step: Progress) -> None:
        """See `Desk`."""
        if os.getppid() != self._parent:
            os._exit(1)
        self._send(_Step(task.number, step))

    def done(self, task: Task, report: TaskReport) -> None:
        """See `Desk`."""
        self._send(_Done(task.number, report))

    def refuse(self, task: Task, problem: InputError) -> None:
        """See `Desk`."""
        self._send(_Refused(task.number, str(problem)))

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError as problem:
            raise _ParentGone from problem


def _serve(work: Work, worker: int, connection: Connection, parent: int) -> None:
    """The life of a worker process: get ready, then task after task until there are no more or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _end)
    desk = _PipeDesk(connection, parent)
    try:
        with contextlib.suppress(_ParentGone, OSError):
            failed = _attempt(lambda: work.start(worker)(desk))
            if failed is not None:
                connection.send(failed)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to remove, and libraries are being taken apart


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # not at once, so that a half-written file is removed on the way out


def _attempt(work: Callable[[], None]) -> _Failed | None:
    """Do it; returns what was raised: whatever that is, it must reach the parent."""
    try:
        work()
    except EmbedpipeError as problem:
        return _Failed(problem, traceback.format_exc())
    except Exception:
        return _Failed(None, traceback.format_exc())
    return None


@dataclass(slots=True)
class _Seat:
    """A worker process, the pipe to it, and the tasks it has in hand with what it said of each.

    asks: it waits for a task. told: it knows that there are no more.
    """

    number: int
    process: Any
    connection: Connection
    in_hand: dict[int, tuple[Task, Tally]] = field(default_factory=dict)
    asks: bool = False
    told: bool = False


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
                self._gone(seat)
                continue
            self._hear(seat, message)
            if seat.asks:
                self._hand_out(seat)

    def _hear(self, seat: _Seat, message: Any) -> None:
        if isinstance(message, _Asks):
            seat.asks = True
        elif isinstance(message, _Step):
            self._listen(seat.in_hand[message.number][1].hear(message.step))
        elif isinstance(message, _Done):
            _, tally = seat.in_hand.pop(message.number)
            self.total += message.report
            self._listen(tally.finish(message.report))
        elif isinstance(message, _Refused):
            task, tally = seat.in_hand.pop(message.number)
            self.set_aside.append(SetAside(task, message.reason))
            self._listen(tally.give_up(tasks=1))
        else:
            assert isinstance(message, _Failed)
            if message.error is not None:
                raise message.error from RemoteTraceback(message.trace)
            last = message.trace.strip().splitlines()[-1]
            raise WorkerDied(
                f"worker {seat.number} failed: {last}", "Run with --debug and report it"
            ) from RemoteTraceback(message.trace)

    def _hand_out(self, seat: _Seat) -> None:
        """Answer a worker that asks. A task that a worker died on is done alone, so that no other is blamed for it."""
        suspect = bool(self._waiting) and self._waiting[0].number in self._deaths
        if seat.in_hand and (suspect or any(number in self._deaths for number in seat.in_hand)):
            return  # it is answered when its hands are empty
        task = self._waiting.popleft() if self._waiting else None
        if task is not None:
            seat.in_hand[task.number] = (task, Tally(seat.number, task.name))
        seat.asks, seat.told = False, task is None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death is seen at the next wait
            seat.connection.send(task)

    def _gone(self, seat: _Seat) -> None:
        """A worker ended: by itself when all is done; else it is replaced, and its tasks go back to the front."""
        del self.seats[seat.connection]
        seat.connection.close()
        seat.process.join()
        dead = bool(seat.in_hand) or not seat.told
        if dead:
            self._died(seat)
        # Tasks of the dead may come back after others were told that there are no more.
        idle = any(not other.told and not other.in_hand for other in self.seats.values())
        if self._waiting and (dead or not idle):
            self.hire(seat.number)

    def _died(self, seat: _Seat) -> None:
        how = _exit_reason(seat.process.exitcode)
        if not seat.in_hand:
            self._idle_deaths += 1
            if self._idle_deaths >= ATTEMPTS:
                raise WorkerDied(
                    f"workers die before they can start ({how})", "Check memory, or try `--workers 1` to see the cause"
                )
        for task, tally in reversed(seat.in_hand.values()):
            deaths = self._deaths[task.number] = self._deaths.get(task.number, 0) + 1
            if deaths >= ATTEMPTS:
                self.set_aside.append(SetAside(task, f"{deaths} workers died on it, the last one {how}"))
            else:
                self._waiting.appendleft(task)
            self._listen(tally.give_up(tasks=int(deaths >= ATTEMPTS)))

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
