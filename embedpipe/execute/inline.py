"""All tasks in this process, one after the other: one worker, debugging, tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..progress import Listener, Progress, TaskReport
from .base import Outcome, SetAside, Task, Work


@dataclass(frozen=True, slots=True)
class InlineExecutor:
    """Runs tasks here. `workers` is accepted for the sake of the others and ignored."""

    workers: int = 1

    def run(self, work: Work, tasks: Sequence[Task], listen: Listener) -> Outcome:
        """See `Executor.run`."""
        total = TaskReport()
        set_aside = []
        if tasks:
            worker = work.start(0)
        for task in tasks:
            try:
                total += worker(task, listen)
            except InputError as problem:
                set_aside.append(SetAside(task, str(problem)))
            listen(Progress(tasks=1))
        return Outcome(total, tuple(set_aside))
