"""All tasks in this process, one after the other: one worker, debugging, tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..progress import Listener, Progress, Tally, TaskReport
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
            tally = Tally(0, task.name)
            try:
                report = worker(task, functools.partial(_hear, tally, listen))
            except InputError as problem:
                set_aside.append(SetAside(task, str(problem)))
                listen(tally.give_up(tasks=1))
            else:
                total += report
                listen(tally.finish(report))
        return Outcome(total, tuple(set_aside))


def _hear(tally: Tally, listen: Listener, step: Progress) -> None:
    listen(tally.hear(step))
