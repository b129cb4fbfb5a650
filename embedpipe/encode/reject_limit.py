"""A progress listener that counts rejects and stops a run that exceeds the limit."""

from __future__ import annotations

from ..errors import TooManyRejects
from ..lock import require_held
from ..plural import plural
from ..progress import Listener, Progress, RejectLimit, add_counts
from .resume import CommittedTotals


class RejectLimitListener:
    """A `Listener` that forwards all reports to another one.

    rows_seen: rows this run encoded, committed or not. Raises TooManyRejects once the limit can no longer be met while
    shards are left: between shards, so that all rejects so far are committed with their reasons. Raises OutputBusy if
    the lock of `out` was taken away.
    """

    def __init__(self, listen: Listener, out: str, limit: RejectLimit | None, committed: CommittedTotals) -> None:
        self.rows_seen = 0
        self._listen = listen
        self._out = out
        self._limit = limit
        self._left = 0
        self._total = committed.rows + committed.rejected
        self._rejects = dict(committed.rejects)

    def __call__(self, step: Progress) -> None:
        """Handle one report."""
        self._listen(step)
        self.rows_seen += step.rows
        self._left += (step.planned or 0) - step.tasks
        if step.finished is not None:
            require_held(self._out)
            report = step.finished.report
            self._total += report.rows + report.rejected
            self._rejects = add_counts(self._rejects, report.rejects)
        if self._left and (step.planned is not None or step.finished is not None):
            self._judge()

    def _judge(self) -> None:
        rejected = sum(self._rejects.values())
        if self._limit is not None and self._limit.hopeless(rejected, self._total):
            worst = sorted(self._rejects.items(), key=lambda item: (-item[1], item[0]))[:3]
            reasons = ", ".join(f"{count:,} {name}" for name, count in worst)
            raise TooManyRejects(
                f"{self._out}: {rejected:,} of the first {plural(self._total, 'sample')} were rejected ({reasons}), "
                f"{'far ' * self._limit.percent}more than `max_rejects={self._limit}`; "
                f"{plural(self._left, 'shard')} left",
                f"Look at {self._out}/errors; what is committed is kept. A higher limit goes on from here",
            )
