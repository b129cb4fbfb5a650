"""What work reports while it goes on. Reports add up; whoever listens decides how to show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


def add_counts(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
    """Counts by name, added."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in sorted(left.keys() | right.keys())}


def add_seconds(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
    """Seconds by name, added."""
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in sorted(left.keys() | right.keys())}


@dataclass(frozen=True, slots=True)
class Progress:
    """A step forward: rows done and rejected, tasks finished, and where the time went (s), all since the last one.

    planned: how many tasks there are in all, said once when it is known.
    """

    rows: int = 0
    rejected: int = 0
    tasks: int = 0
    planned: int | None = None
    spent_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What one finished task (one shard) did. `a + b` is what both did."""

    tasks: int = 0
    rows: int = 0
    rejected: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    spent_s: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: TaskReport) -> TaskReport:
        return TaskReport(
            tasks=self.tasks + other.tasks,
            rows=self.rows + other.rows,
            rejected=self.rejected + other.rejected,
            rejects=add_counts(self.rejects, other.rejects),
            bytes=self.bytes + other.bytes,
            spent_s=add_seconds(self.spent_s, other.spent_s),
        )


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A listener that shows nothing."""
