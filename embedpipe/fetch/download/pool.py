"""A pool of download processes: started, given one part at a time, monitored, and always terminated.

Each runs `worker` in its own session: a Ctrl-C at the terminal reaches only the parent, which can kill the whole
process group. If the parent is killed first, the pipe to the worker closes and the worker exits by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ... import files
from ...errors import OutOfResources, WorkerDied
from ...progress import Listener, Progress
from ...scarcity import telling
from . import messages
from .messages import DownloadTask, WorkerSettings

_TRIES_PER_TASK = 3  # after the first, no image can end the process
_ENVIRONMENT = {
    "OPENCV_IO_MAX_IMAGE_PIXELS": "100000000",  # checked in the header, before a decompression bomb is decoded
    "OMP_NUM_THREADS": "1",
}


@dataclass(slots=True)
class _Process:
    child: subprocess.Popen[bytes]
    task: DownloadTask | None = None
    unread: bytes = b""

    def send(self, line: bytes) -> None:
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: handled where its closed stdout is noticed
            self.child.stdin.write(line)
            self.child.stdin.flush()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class DownloadPool:
    """A context manager of up to `size` download processes; all are ended on exit."""

    def __init__(self, settings: WorkerSettings, size: int, log_file: str) -> None:
        self.settings = settings
        self.size = size
        self.log_file = log_file
        self.deaths: Counter[str] = Counter()  # by stem
        self.selector = selectors.DefaultSelector()
        self.processes: list[_Process] = []

    def __enter__(self) -> DownloadPool:
        try:
            with telling():
                for _ in range(self.size):
                    self._start()
        except (OSError, OutOfResources):
            self._kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill_all()

    def _kill_all(self) -> None:
        for process in self.processes:
            process.kill()
        self.selector.close()

    def _start(self) -> _Process:
        with Path(self.log_file).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "embedpipe.fetch.download.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
            )
        process = _Process(child)
        self.processes.append(process)
        assert child.stdout is not None
        self.selector.register(child.stdout, selectors.EVENT_READ, process)
        process.send(messages.to_line(self.settings))
        return process

    def results(self, work: Iterable[DownloadTask], listener: Listener) -> Iterator[DownloadTask]:
        """Each task once it is done, in order of completion.

        `work` is consumed only when a process is free, so it may write a task's file as it yields it.
        """
        queue = iter(work)
        for process in self.processes:
            self._assign(process, next(queue, None))
        while any(process.task for process in self.processes):
            for chosen, _ in self.selector.select():
                process = chosen.data
                done = self._hear(process, listener)
                if done is not None:
                    # Assign the next task first: the process downloads while the caller packs this one.
                    self._assign(process, next(queue, None))
                    yield done

    def _assign(self, process: _Process, task: DownloadTask | None) -> None:
        process.task = task
        if task is not None:
            process.send(messages.to_line(task))

    def _hear(self, process: _Process, listener: Listener) -> DownloadTask | None:
        """Read a process's report; returns its task if done. A dead process is replaced."""
        assert process.child.stdout is not None
        data = os.read(process.child.stdout.fileno(), 1 << 16)
        if not data:
            self._replace(process)
            return None
        *lines, process.unread = (process.unread + data).split(b"\n")
        done = None
        for event in map(messages.event_from, lines):
            if event.lack:
                raise OutOfResources(event.lack, event.remedy)
            if event.error:
                raise files.unwritable(event.error, OSError(event.errno, os.strerror(event.errno)))
            if event.rows or event.failed:
                rejected = sum(event.failed.values())
                listener(Progress(rows=event.rows, rejected=rejected, rejects=event.failed, bytes=event.received))
            if event.done:
                done = process.task
        return done

    def _replace(self, process: _Process) -> None:
        """Replace a process that died: its task goes to a new one, which decodes every image in a child."""
        assert process.child.stdout is not None
        self.selector.unregister(process.child.stdout)
        self.processes.remove(process)
        process.kill()
        task = process.task
        if task is None:
            return
        self.deaths[task.stem] += 1
        if self.deaths[task.stem] == _TRIES_PER_TASK:
            raise self._died(process, f"{_TRIES_PER_TASK} times over shard {task.shard}")
        self._assign(self._start(), dataclasses.replace(task, careful=True))

    def _died(self, process: _Process, when: str) -> WorkerDied:
        log = Path(self.log_file).read_text(errors="replace").strip().splitlines()
        last = f", saying: {log[-1][:200]}" if log else ""
        return WorkerDied(
            f"the download process ended (status {process.child.returncode}) {when}{last}",
            f"See {self.log_file}; what is committed is whole, the same command goes on from there",
        )
