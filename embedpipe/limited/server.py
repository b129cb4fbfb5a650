"""The other side of `calls`: a process that forks children on request, and what each child does.

It has a single thread and imports what the calls need once, so that a child costs milliseconds and little memory.
Nothing outlives the caller: the server ends when its socket closes, and the children with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..pillow import ignore_metadata_warnings
from . import frames
from .limits import CallLimits

FORK, END = b"F", b"E"
# The kinds of answers: a value; the text of a MemoryError; the traceback of another exception.
RETURNED, OUT_OF_MEMORY, RAISED = 0, 1, 2

_COPIES = 3  # of the input, that decoders make
_PR_SET_PDEATHSIG = 1
_PAGE = resource.getpagesize()


def main(descriptor: int) -> None:
    """Prepare as the caller says, then fork children for it until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    ignore_metadata_warnings()
    control = socket.socket(fileno=descriptor)
    prepared = frames.receive(control.makefile("rb"))
    if prepared is None:
        return
    try:
        pickle.loads(prepared)()
    except Exception:
        frames.send(control, traceback.format_exc().encode())
        return
    frames.send(control, b"")
    _Forks(control).serve()


class _Forks:
    """The children, by process id."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        self._libc: Any = ctypes.CDLL(None)

    def serve(self) -> None:
        """Answer requests: FORK with a socket → the child's id; END and an id → how the child ended."""
        try:
            while True:
                request, descriptors, _, _ = socket.recv_fds(self._control, 1 + frames.LENGTH.size, 1)
                if not request:
                    return
                if request[:1] == FORK:
                    self._answer(self._fork(descriptors[0]))
                else:
                    self._answer(self._end(frames.LENGTH.unpack(request[1:])[0]))
        finally:
            for child in tuple(self._children):
                self._end(child)

    def _answer(self, value: int) -> None:
        with contextlib.suppress(OSError):  # the caller is gone: noticed at the next request
            self._control.sendall(frames.LENGTH.pack(value))

    def _fork(self, descriptor: int) -> int:
        """The id of a new child, 0 if this machine lets none start."""
        server = os.getpid()
        try:
            child = os.fork()
        except OSError:
            os.close(descriptor)
            return 0
        if child:
            os.close(descriptor)
            self._children.add(child)
            return child
        self._become_child(server, descriptor)

    def _become_child(self, server: int, descriptor: int) -> NoReturn:
        try:
            if sys.platform == "linux":
                self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == server:
                self._control.close()
                with contextlib.suppress(OSError):  # if memory runs out, the kernel ends this process first
                    Path("/proc/self/oom_score_adj").write_text("1000")
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                _serve(socket.socket(fileno=descriptor))
        finally:
            os._exit(0)

    def _end(self, child: int) -> int:
        os.kill(child, signal.SIGKILL)  # one that has ended on its own is not reaped yet: its id is nobody else's
        self._children.remove(child)
        return os.waitpid(child, 0)[1]


def _serve(link: socket.socket) -> None:
    """Answer calls until the caller closes the socket."""
    data_before = _data_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    stream = link.makefile("rb")
    while (head := frames.receive(stream)) is not None:
        function, arguments, limits, size = pickle.loads(head)
        allowed = data_before + limits.memory + _COPIES * size
        resource.setrlimit(resource.RLIMIT_DATA, (allowed if hard < 0 else min(allowed, hard), hard))
        data = stream.read(size)
        if len(data) < size:
            return
        frames.send(link, _answer(function, data, arguments, limits))
        del data


def _answer(function: Callable[..., Any], data: bytes, arguments: tuple[Any, ...], limits: CallLimits) -> bytes:
    # At its end the timer ends the process: no handler could run while a decoder does.
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    try:
        answer = pickle.dumps((RETURNED, function(data, *arguments)), pickle.HIGHEST_PROTOCOL)
    except MemoryError as problem:
        answer = pickle.dumps((OUT_OF_MEMORY, str(problem)))
    except Exception:
        answer = pickle.dumps((RAISED, traceback.format_exc()))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return answer


def _data_bytes() -> int:
    """Bytes of private writable memory, as RLIMIT_DATA counts it; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE
    except OSError:
        return sys.maxsize >> 1
