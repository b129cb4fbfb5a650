"""The Ray executor: one actor per worker; only shard numbers and small reports are transferred.

An actor that dies, loses its machine or stops responding is replaced like a dead process on this machine. Ray's own
retries are off: the task tracker alone knows which task is where, as for every executor.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EmbedpipeError, WorkerDied
from ..imports import uncollected
from ..openmp import bound_spinning
from ..pillow import ignore_metadata_warnings
from ..progress import Listener
from .actor import BEAT_S, Left, WorkerActor
from .base import Outcome, Tasks, WorkerFactory, WorkerLoop
from .messages import RemoteTraceback
from .ray_cluster import Cluster, WorkerResources, joined_cluster, ray_library, require_resources
from .task_tracker import InFlight, TaskReply, TaskTracker

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Runs tasks on `workers` actors of a cluster, each with the resources in `room`."""

    workers: int
    cluster: Cluster = field(default_factory=Cluster)
    room: WorkerResources = field(default_factory=WorkerResources)

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """See `Executor.ready`."""
        return joined_cluster(self.cluster, self.workers * self.room.cpus)

    def call(self, function: Callable[..., _Made], *arguments: Any) -> _Made:
        """See `Executor.call`."""
        with self.ready():
            ray = ray_library()
            require_resources(1, self.room)
            remote = ray.remote(**_options(self.room), max_retries=0)(_in_folder)
            try:
                made: _Made = ray.get(remote.remote(str(Path.cwd()), function, *arguments))
            except ray.exceptions.RayTaskError as problem:
                if isinstance(problem.cause, EmbedpipeError):
                    raise problem.cause from RemoteTraceback(str(problem))
                raise WorkerDied(
                    f"a worker failed: {_last_line(problem)}", "Report it, with its traceback"
                ) from RemoteTraceback(str(problem))
            except ray.exceptions.RayError as problem:
                raise WorkerDied(
                    f"a worker ended {_why(problem)}", "Look at the cluster with `ray status`"
                ) from problem
        return made

    def run(self, work: WorkerFactory, tasks: Tasks, listen: Listener) -> Outcome:
        """See `Executor.run`."""
        ledger = TaskTracker(tasks, listen)
        if not tasks:
            return ledger.outcome()
        with self.ready():
            workers = min(self.workers, len(tasks))
            require_resources(workers, self.room)
            crew = _Crew(work, ledger, self.cluster, self.room)
            try:
                for number in range(workers):
                    crew.hire(number)
                while not crew.finished():
                    crew.step()
            finally:
                crew.dismiss()
        return ledger.outcome()


def _in_folder(folder: str, function: Callable[..., _Made], *arguments: Any) -> _Made:
    """Call it in the folder where the run was started, so that relative paths keep their meaning.

    For a process started by Ray for this purpose: it stays in that folder.
    """
    with contextlib.suppress(OSError):  # other machines need not have it
        os.chdir(folder)
    return function(*arguments)


@dataclass(frozen=True, slots=True)
class _InFolder:
    """A pickled worker factory that starts in a folder, for the same reason.

    Pickled separately, so that its imports (torch) are loaded after OpenMP's variables are set.
    """

    work: bytes
    folder: str

    def start(self, worker: int) -> WorkerLoop:
        """See `WorkerFactory.start`."""
        bound_spinning()
        ignore_metadata_warnings()
        with uncollected():
            work: WorkerFactory = pickle.loads(self.work)
        return _in_folder(self.folder, work.start, worker)


def _options(room: WorkerResources) -> dict[str, Any]:
    return {"num_cpus": room.cpus, "num_gpus": room.gpus, "scheduling_strategy": "SPREAD"}


@dataclass(slots=True)
class _Seat:
    """A worker, the pending poll, and the time of its last message; None: it has not started."""

    hands: InFlight
    actor: Any
    question: Any
    heard: float | None = None


class _Crew:
    """The actors of one run."""

    def __init__(self, work: WorkerFactory, ledger: TaskTracker, cluster: Cluster, room: WorkerResources) -> None:
        self._ray = ray_library()
        self._work = self._ray.put(
            _InFolder(self._ray.cloudpickle.dumps(work), str(Path.cwd()))
        )  # once for all workers
        self._ledger = ledger
        self._cluster = cluster
        self._room = room
        self._seats: dict[Any, _Seat] = {}
        self._lively = time.monotonic()

    def hire(self, number: int) -> None:
        """Request a worker from the cluster, which decides where and when it starts."""
        actor_class = self._ray.remote(**_options(self._room), max_restarts=0, max_task_retries=0)(WorkerActor)
        # An actor has its own process, which may be killed.
        actor = actor_class.remote(self._work, number, version("embedpipe"), self._cluster.silence_s, os._exit)
        self._ask(_Seat(InFlight(number), actor, None), None)

    def finished(self) -> bool:
        """Whether nothing is left to do, regardless of workers that still wait for a machine."""
        started = any(seat.heard is not None for seat in self._seats.values())
        return not started and not self._ledger.left

    def step(self) -> None:
        """Wait for a message from any worker, and reply; check on silent ones."""
        ready, _ = self._ray.wait(list(self._seats), num_returns=1, timeout=BEAT_S)
        for question in ready:
            seat = self._seats[question]
            try:
                said = self._ray.get(question)
            except self._ray.exceptions.RayError as problem:
                self._gone(seat, _why(problem))
            else:
                self._hear(seat, said)
        self._look_after()

    def _hear(self, seat: _Seat, said: Sequence[Any]) -> None:
        seat.heard = self._lively = time.monotonic()
        for message in said:
            if isinstance(message, Left):
                self._gone(seat, "by itself")
                return
            self._ledger.hear(seat.hands, message)
        others = (other.hands for other in self._seats.values() if other is not seat)
        self._ask(seat, self._ledger.answer(seat.hands, others))

    def _ask(self, seat: _Seat, answer: TaskReply | None) -> None:
        self._seats.pop(seat.question, None)
        seat.question = seat.actor.exchange.remote(answer)
        self._seats[seat.question] = seat

    def _gone(self, seat: _Seat, how: str) -> None:
        del self._seats[seat.question]
        self._ray.kill(seat.actor)
        if self._ledger.gone(seat.hands, how, (other.hands for other in self._seats.values())):
            self.hire(seat.hands.number)

    def _look_after(self) -> None:
        now = time.monotonic()
        for seat in list(self._seats.values()):
            if seat.heard is not None and now - seat.heard > self._cluster.silence_s:
                self._gone(seat, f"silent for {self._cluster.silence_s:.0f} s")
        if all(seat.heard is None for seat in self._seats.values()) and now - self._lively > self._cluster.start_s:
            raise WorkerDied(
                f"no worker could be started for {self._cluster.start_s:.0f} s: the cluster lost the room for one",
                "What is committed is whole. Look at it with `ray status`, and run the same command again",
            )

    def dismiss(self) -> None:
        """End all running and pending workers."""
        for seat in self._seats.values():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(seat.actor)


def _why(problem: Exception) -> str:
    """How an actor ended, in words that follow "the last one"."""
    text = str(problem)
    if "node" in text and "died" in text and "The actor died because its node has died" in text:
        return "with its machine"
    if "creation task" in text:
        return f"before it began: {_last_line(problem)}"
    return "without a word (out of memory?)"


def _last_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[-1].strip()
