"""A worker that is polled for its messages: the actor of a Ray cluster.

Only numbers, names and these messages are transferred: pixels and embeddings never leave the worker's process.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from ..errors import InputError
from ..progress import Progress, TaskReport
from .base import Task, WorkerFactory
from .messages import Asks, Done, Failed, Message, Refused, WorkerStep, attempt
from .task_tracker import TaskReply

BEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class Left:
    """The worker has finished all its tasks and requests no more."""


class WorkerActor:
    """Runs a worker on a thread; `exchange` delivers replies to it and returns its messages.

    end: called once, from a thread, when the worker must end: with 1 after `silence_s` without a poll, so that a
    machine that was suspended does not continue beside its replacement; with an exit code if the work raises SystemExit
    or the like. How to end depends on who owns the process, which only the caller knows.
    """

    def __init__(
        self, work: WorkerFactory, worker: int, release: str, silence_s: float, end: Callable[[int], object]
    ) -> None:
        self._end = end
        self._said: deque[Message | Left] = deque()
        self._answers: deque[TaskReply] = deque()
        self._changed = threading.Condition()
        self._silence_s = silence_s
        self._asked = time.monotonic()
        ours = version("embedpipe")
        if ours != release:
            self._say(
                Failed(
                    InputError(
                        f"{os.uname().nodename}: embedpipe {ours}, but the run was begun by {release}",
                        "Install the same version on all nodes",
                    ),
                    "",
                )
            )
            return
        threading.Thread(target=self._serve, args=(work, worker), name="work", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def exchange(self, answer: TaskReply | None) -> list[Message | Left]:
        """Deliver a reply; returns the messages since the last call, none if there were none for one interval."""
        with self._changed:
            self._asked = time.monotonic()
            if answer is not None:
                self._answers.append(answer)
                self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._said), BEAT_S)
            said = list(self._said)
            self._said.clear()
            self._asked = time.monotonic()
        return said

    def next(self) -> Task | None:
        """See `TaskContext`."""
        self._say(Asks())
        with self._changed:
            self._changed.wait_for(lambda: bool(self._answers))
            return self._answers.popleft().task

    def tell(self, task: Task, step: Progress) -> None:
        """See `TaskContext`."""
        self._say(WorkerStep(task.number, step))

    def done(self, task: Task, report: TaskReport) -> None:
        """See `TaskContext`."""
        self._say(Done(task.number, report))

    def refuse(self, task: Task, problem: InputError) -> None:
        """See `TaskContext`."""
        self._say(Refused(task.number, str(problem)))

    def _say(self, message: Message | Left) -> None:
        with self._changed:
            self._said.append(message)
            self._changed.notify_all()

    def _serve(self, work: WorkerFactory, worker: int) -> None:
        try:
            failed = attempt(lambda: work.start(worker)(self))
        except BaseException as problem:  # for the work, this is the end of the process
            self._end(problem.code if isinstance(problem, SystemExit) and isinstance(problem.code, int) else 1)
            return
        self._say(failed if failed is not None else Left())

    def _watch(self) -> None:
        while time.monotonic() - self._asked < self._silence_s:
            time.sleep(BEAT_S)
        self._end(1)
