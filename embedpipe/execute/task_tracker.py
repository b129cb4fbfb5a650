"""Task tracking: assign tasks one at a time, requeue those of dead workers, set aside those that killed too many.

A requeued task is marked, so that the next worker does it more carefully: see `Task`.

Shared by all executors with workers in other processes; the transport is their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..errors import WorkerDied
from ..progress import Listener, Tally, TaskReport
from .base import FailedTask, Outcome, Task, Tasks
from .messages import Asks, Done, Failed, Message, Refused, RemoteTraceback, WorkerStep

ATTEMPTS = 3


@dataclass(slots=True)
class InFlight:
    """A worker's tasks in flight, with its progress in each.

    asks: it waits for a task. told: it has been notified that there are no more.
    """

    number: int
    tasks: dict[int, tuple[Task, Tally]] = field(default_factory=dict)
    asks: bool = False
    told: bool = False


@dataclass(frozen=True, slots=True)
class TaskReply:
    """The reply to a worker's request: its next task, or that there are no more."""

    task: Task | None


class TaskTracker:
    """The tasks of one run."""

    def __init__(self, tasks: Tasks, listen: Listener) -> None:
        self._coming, self._undrawn = iter(tasks), len(tasks)
        self._waiting: deque[Task] = deque()  # of dead workers
        self._deaths: dict[int, int] = {}
        self._idle_deaths = 0
        self._listen = listen
        self._total = TaskReport()
        self._failed: list[FailedTask] = []

    @property
    def left(self) -> int:
        """Unassigned tasks, or a few more."""
        return len(self._waiting) + self._undrawn

    def outcome(self) -> Outcome:
        """The outcome so far."""
        return Outcome(self._total, tuple(self._failed))

    def hear(self, hands: InFlight, message: Message) -> None:
        """Record a worker's message. Raises what it raised."""
        if isinstance(message, Asks):
            hands.asks = True
        elif isinstance(message, WorkerStep):
            self._listen(hands.tasks[message.number][1].hear(message.step))
        elif isinstance(message, Done):
            _, tally = hands.tasks.pop(message.number)
            self._total += message.report
            self._listen(tally.finish(message.report))
        elif isinstance(message, Refused):
            task, tally = hands.tasks.pop(message.number)
            self._failed.append(FailedTask(task, message.reason))
            self._listen(tally.give_up(tasks=1))
        else:
            _raise(hands, message)

    def answer(self, hands: InFlight, others: Iterable[InFlight]) -> TaskReply | None:
        """The reply to a worker now; None if it has no request, or must first finish its tasks.

        A task that killed a worker runs alone, so that no other task is blamed. The last tasks are reserved for those
        `others` that have none, even while they load: no worker gets a second task before their first.
        """
        if not hands.asks or (hands.tasks and (self._is_suspect(hands) or self._is_short(others))):
            return None
        task = self._drawn()
        if task is not None:
            hands.tasks[task.number] = (task, Tally(hands.number, task.name))
        hands.asks, hands.told = False, task is None
        return TaskReply(task)

    def _drawn(self) -> Task | None:
        if self._waiting:
            return self._waiting.popleft()
        task = next(self._coming, None)
        self._undrawn = self._undrawn - 1 if task is not None else 0
        return task

    def _is_suspect(self, hands: InFlight) -> bool:
        following = (self._waiting[0].number,) if self._waiting else ()
        return any(number in self._deaths for number in (*following, *hands.tasks))

    def _is_short(self, others: Iterable[InFlight]) -> bool:
        empty = sum(not other.told and not other.tasks for other in others)
        return 0 < self.left <= empty

    def gone(self, hands: InFlight, how: str, others: Iterable[InFlight]) -> bool:
        """Handle the end of a worker: if tasks are left, requeue its own at the front. Returns whether to replace it.

        how: the reason, in words that follow "the last one". Raises WorkerDied if workers cannot even start.
        """
        dead = bool(hands.tasks) or not hands.told
        if dead:
            self._died(hands, how)
        # Tasks of dead workers may come back after others were notified that there are no more.
        idle = any(not other.told and not other.tasks for other in others)
        return bool(self.left) and (dead or not idle)

    def _died(self, hands: InFlight, how: str) -> None:
        if not hands.tasks:
            self._idle_deaths += 1
            if self._idle_deaths >= ATTEMPTS:
                raise WorkerDied(
                    f"workers die before they can start ({how})", "Check memory, or try `workers=1` to see the cause"
                )
        for task, tally in reversed(hands.tasks.values()):
            deaths = self._deaths[task.number] = self._deaths.get(task.number, 0) + 1
            if deaths >= ATTEMPTS:
                self._failed.append(FailedTask(task, f"{deaths} workers died on it, the last one {how}"))
            else:
                self._waiting.appendleft(replace(task, careful=True))
            self._listen(tally.give_up(tasks=int(deaths >= ATTEMPTS)))
        hands.tasks.clear()


def _raise(hands: InFlight, failed: Failed) -> None:
    if failed.error is not None:
        raise failed.error from RemoteTraceback(failed.trace)
    last = failed.trace.strip().splitlines()[-1]
    raise WorkerDied(f"worker {hands.number} failed: {last}", "Report it, with its traceback") from RemoteTraceback(
        failed.trace
    )
