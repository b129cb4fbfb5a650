"""The caller's side: children on demand, one for each concurrent call, replaced when they die or exceed a limit."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import WorkerDied
from ..openmp import bound_spinning
from . import frames
from .limits import DIED, MEMORY, TIME, CallFault, CallLimits
from .server import END, FORK, OUT_OF_MEMORY, RETURNED

_LOOK_EVERY_S = 0.1
_SCARCITY_MAY_LAST_S = 10.0
_CALLS_PER_CHILD = 500  # decoders leak, in their error paths most of all
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from embedpipe.limited.server import main; main(int(sys.argv[2]))"
)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Stopped(Exception):
    """The caller asked to stop while a call was running."""


class _Gone(Exception):
    """A child ended instead of answering, or did not answer in time."""


@dataclass(slots=True)
class _Child:
    link: socket.socket
    pid: int
    server: _Server
    calls: int = 0

    def ask(self, head: bytes, data: bytes, wall_s: float, stopped: Callable[[], bool]) -> tuple[int, Any]:
        """The kind of answer, and the answer. Raises _Gone, TimeoutError or Stopped."""
        self.calls += 1
        self.link.settimeout(_LOOK_EVERY_S)
        # Looks are counted, not seconds: a job that is suspended (Ctrl-Z, a scheduler) has its children suspended too.
        looks = iter(range(math.ceil(wall_s / _LOOK_EVERY_S)))

        def patiently(transfer: Callable[[memoryview], int], left: memoryview) -> None:
            while left:
                try:
                    count = transfer(left)
                except TimeoutError:
                    if stopped():
                        raise Stopped from None
                    if next(looks, None) is None:
                        raise
                    continue
                if not count:
                    raise _Gone
                left = left[count:]

        def receive(size: int) -> bytearray:
            received = bytearray(size)
            patiently(self.link.recv_into, memoryview(received))
            return received

        try:
            for piece in (frames.LENGTH.pack(len(head)) + head, data):
                patiently(self.link.send, memoryview(piece))
            (size,) = frames.LENGTH.unpack(receive(frames.LENGTH.size))
            kind, value = pickle.loads(receive(size))
        except TimeoutError:
            raise
        except OSError as problem:
            raise _Gone from problem
        return kind, value


class LimitedCalls:
    """Calls functions of bytes in child processes. Thread-safe; nothing is started before the first call.

    prepare: a picklable function that imports what the calls need; it runs once, in the process that children are
    forked from, and what it returns is dropped.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._starting = threading.Lock()
        self._server: _Server | None = None
        self._idle: list[_Child] = []

    def call(
        self,
        function: Callable[..., Any],
        data: bytes,
        arguments: tuple[Any, ...],
        limits: CallLimits,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Any:
        """`function(data, *arguments)`, or a CallFault. Function, arguments and result are pickled.

        A child that crashes may have been damaged by an earlier call, or killed for want of memory elsewhere: the call
        is repeated once in a fresh one. Raises Stopped once `stopped()` is true, and WorkerDied if no child can be
        started or the function raises anything but a MemoryError.
        """
        head = pickle.dumps((function, arguments, limits, len(data)))
        fault: CallFault | None = None
        for again in (False, True):
            child = self._child(fresh=again)
            used = child.calls > 0
            try:
                kind, value = child.ask(head, data, limits.wall_s, stopped)
            except _Gone:
                fault = _fault(self._end(child), limits)
            except TimeoutError:
                self._end(child)
                return CallFault(TIME, f"no answer for {limits.wall_s:g} s")
            except BaseException:
                self._end(child)
                raise
            else:
                fault = CallFault(MEMORY, f"more than {limits.memory >> 20:,} MiB") if kind == OUT_OF_MEMORY else None
                self._keep(child, kind)
                if fault is None and kind != RETURNED:
                    raise WorkerDied(f"{function.__name__} failed: {value.strip().splitlines()[-1]}", "Report it")
                if fault is None:
                    return value
            if fault.error_class == TIME or (fault.error_class == MEMORY and not used):
                return fault
        return fault

    def _child(self, fresh: bool) -> _Child:
        if os.getpid() != self._owner:  # the process was forked: the children answer the other one
            self._begin()
        if not fresh:
            with contextlib.suppress(IndexError):
                return self._idle.pop()
        until = time.monotonic() + _SCARCITY_MAY_LAST_S
        while True:
            try:
                with self._starting:
                    return self._started()
            except OSError as problem:  # this machine's files, processes or memory, which others may soon give back
                if time.monotonic() > until:
                    raise _unstartable(problem.strerror or problem) from problem
            time.sleep(_LOOK_EVERY_S)

    def _started(self) -> _Child:
        if self._server is not None and not self._server.is_alive():
            self._server.close()
            self._server = None
        self._server = self._server or _Server(self._prepare)
        return self._server.fork()

    def _keep(self, child: _Child, kind: int) -> None:
        if kind == RETURNED and child.calls < _CALLS_PER_CHILD:
            self._idle.append(child)
        else:
            self._end(child)

    def _end(self, child: _Child) -> int:
        """End a child; returns its wait status."""
        child.link.close()
        with self._starting:
            return child.server.end(child.pid)

    def close(self) -> None:
        """End all children; the next call starts anew."""
        with self._starting:
            if self._owner != os.getpid():
                return
            while self._idle:
                self._idle.pop().link.close()
            if self._server is not None:
                self._server.close()
                self._server = None


def _fault(status: int, limits: CallLimits) -> CallFault:
    number = -os.waitstatus_to_exitcode(status)
    if number == signal.SIGPROF:
        return CallFault(TIME, f"more than {limits.seconds:g} s of processor time")
    if number <= 0:
        return CallFault(DIED, f"the decoder ended its process with exit code {-number}")
    name = signal.Signals(number).name
    return CallFault(DIED, f"the decoder was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else ""))


class _Server:
    """The process that children are forked from, see `server`. Not thread-safe.

    Raises OSError if this machine lets it not start, WorkerDied if it fails.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._control, theirs = socket.socketpair()
        environment = {**os.environ, **_ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}
        bound_spinning(environment)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # decoders write there
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                )
        except OSError:
            self._control.close()
            raise
        failed: bytes | None = b"it ended at once"
        with contextlib.suppress(OSError):
            frames.send(self._control, pickle.dumps(prepare))
            failed = frames.receive(self._control.makefile("rb"))
        if failed != b"":
            self.close()
            raise _unstartable((failed or b"it ended at once").decode().strip().splitlines()[-1])

    def is_alive(self) -> bool:
        """Whether it runs and can be asked."""
        return self._control.fileno() >= 0 and self._process.poll() is None

    def fork(self) -> _Child:
        """Start a child. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = self._answer(lambda: socket.send_fds(self._control, [FORK], [theirs.fileno()]))
            if not pid:
                raise BlockingIOError(errno.EAGAIN, "no more processes or memory")
        except OSError:
            ours.close()
            raise
        return _Child(ours, pid, self)

    def end(self, pid: int) -> int:
        """End a child, unless it has ended; returns its wait status, 9 (killed) if the server is gone as well."""
        try:
            return self._answer(lambda: self._control.sendall(END + frames.LENGTH.pack(pid)))
        except OSError:
            return int(signal.SIGKILL)

    def _answer(self, ask: Callable[[], object]) -> int:
        try:
            ask()
            received = self._control.recv(frames.LENGTH.size, socket.MSG_WAITALL)
        except BaseException:  # Ctrl-C: the answer would be taken for that of the next request
            self._control.close()
            raise
        if len(received) < frames.LENGTH.size:
            raise ConnectionResetError("it is gone")
        return int(frames.LENGTH.unpack(received)[0])

    def close(self) -> None:
        """End it, and its children."""
        self._control.close()
        self._process.wait()


def _unstartable(problem: object) -> WorkerDied:
    return WorkerDied(
        f"no process could be started to decode images in: {problem}",
        "Look at the machine's memory and process limits; the same command goes on from what is committed",
    )
