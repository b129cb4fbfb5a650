"""Recipes of work for executor tests: at the top of a module, so that a fresh process can import them."""

import atexit
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedpipe.errors import DiskFull, InputError
from embedpipe.execute import one_by_one, several_at_once
from embedpipe.progress import Progress, TaskReport
from embedpipe.store.hashed_writer import write_npy


@dataclass(frozen=True)
class Doing:
    """Notes each begun task in `folder`, then does what the task's payload says."""

    folder: str

    def start(self, worker):
        Path(self.folder, f"worker-{worker}-{os.getpid()}").touch()
        return one_by_one(self.do)

    def do(self, task, listen):
        with Path(self.folder, f"task-{task.number}").open("a") as log:
            log.write(f"{os.getpid()}\n")
        listen(Progress(rows=1))
        ACTIONS[task.payload](self.folder, task)
        return TaskReport(tasks=1, rows=10 + task.number, rejected=1, rejects={"x": 1}, bytes=3, spent_s={"m": 0.5})


@dataclass(frozen=True)
class Evicted:
    """Writes a file into `out`, which somebody else has replaced by a folder of theirs."""

    out: str

    def start(self, worker):
        return one_by_one(self.do)

    def do(self, task, listen):
        Path(self.out).rename(f"{self.out}-before")
        Path(self.out).mkdir()
        write_npy(self.out, "rows.npy", np.zeros(3))
        return TaskReport(tasks=1)


@dataclass(frozen=True)
class Ahead(Doing):
    """Asks for the next task as soon as it has one, on a thread, and begins it when it is done with the last."""

    def start(self, worker):
        return self.work

    def work(self, desk):
        waiting = queue.Queue(1)

        def ask():
            while (task := desk.next()) is not None:
                waiting.put(task)
            waiting.put(None)

        threading.Thread(target=ask, daemon=True).start()
        while (task := waiting.get()) is not None:
            time.sleep(0.1)  # so that the next is in hand when this one ends badly
            desk.done(task, self.do(task, lambda step, task=task: desk.tell(task, step)))


@dataclass(frozen=True)
class Together(Doing):
    """Does up to three tasks at once."""

    def start(self, worker):
        return several_at_once(self.do, 3)


@dataclass(frozen=True)
class LeavingSlowly(Doing):
    """Takes a while to leave the process when its work is done, and leaves its number in `folder`/leaving."""

    def start(self, worker):
        atexit.register(self.leave)
        return super().start(worker)

    def leave(self):
        Path(self.folder, "leaving").write_text(f"{os.getpid()}\n")
        time.sleep(20)


@dataclass(frozen=True)
class Broken:
    """Cannot start: `how` is raise, input or die."""

    how: str

    def start(self, worker):
        if self.how == "die":
            os._exit(7)
        raise InputError("nothing there") if self.how == "input" else DiskFull("full", "Free some")


def _die(folder, task):
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once(folder, task):
    if len(Path(folder, f"task-{task.number}").read_text().split()) == 1:
        _die(folder, task)


def _slow(folder, task):
    time.sleep(0.2)


def _for_ever(folder, task):
    while True:
        time.sleep(0.01)


def _refuse(folder, task):
    raise InputError(f"{task.name}: gone")


def _full(folder, task):
    raise DiskFull("no space", "Free some")


def _bug(folder, task):
    raise ZeroDivisionError("a bug")


def _end_of_file(folder, task):
    raise EOFError("a bug of another kind")


def _exit(folder, task):
    sys.exit(5)


def _print_lots(folder, task):
    sys.stderr.write("x" * 200_000 + "\n")


ACTIONS = {
    "fine": lambda folder, task: None,
    "die": _die,
    "die once": _die_once,
    "slow": _slow,
    "for ever": _for_ever,
    "refuse": _refuse,
    "full": _full,
    "bug": _bug,
    "end of file": _end_of_file,
    "exit": _exit,
    "print": _print_lots,
}


@dataclass(frozen=True)
class WritingItsEnvironment:
    """Writes the environment that the worker process was started with to `folder`/environment."""

    folder: str

    def start(self, worker):
        Path(self.folder, "environment").write_bytes(Path("/proc/self/environ").read_bytes())
        return one_by_one(lambda task, listen: TaskReport(tasks=1))


@dataclass(frozen=True)
class NotingSpinning:
    """Writes how long OpenMP's threads will spin in the worker process to `folder`/spinning."""

    folder: str

    def start(self, worker):
        Path(self.folder, "spinning").write_text(os.environ.get("GOMP_SPINCOUNT", ""))
        return one_by_one(lambda task, listen: TaskReport(tasks=1))
