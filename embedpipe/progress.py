"""Progress reports. Reports add up; the listener decides how to show them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .accounts import Accounts, total
from .plural import plural

if TYPE_CHECKING:
    from numpy import ndarray  # listeners do not need numpy otherwise

SAMPLES_TO_JUDGE_BY = 1000


def add_counts(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
    """Add counts by name; those that add up to none are left out."""
    sums = {name: left.get(name, 0) + right.get(name, 0) for name in sorted(left.keys() | right.keys())}
    return {name: count for name, count in sums.items() if count}


def add_seconds(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
    """Add seconds by name."""
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in sorted(left.keys() | right.keys())}


@dataclass(frozen=True, slots=True)
class Note:
    """A message from a task to the code that started the run. `kind` is a name known to both."""

    number: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class CutCaptions:
    """Counts of captions longer than the model's context. `a + b` adds them up.

    rows: counted rows. captions: those with a truncated caption. tokens: the total number of tokens not read.
    """

    rows: int = 0
    captions: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, tokens_cut: ndarray | None) -> CutCaptions:
        """int32 [n], truncated tokens of each row's caption; None counts as no rows."""
        if tokens_cut is None:
            return cls()
        return cls(len(tokens_cut), int((tokens_cut > 0).sum()), int(tokens_cut.sum(dtype="int64")))

    def __add__(self, other: CutCaptions) -> CutCaptions:
        return CutCaptions(self.rows + other.rows, self.captions + other.captions, self.tokens + other.tokens)

    def shares(self) -> str:
        """`37 of 3,000 (1.2%), 812 tokens`."""
        return f"{self.captions:,} of {self.rows:,} ({self.captions / max(1, self.rows):.1%}), {self.tokens:,} tokens"

    def said(self, context_length: int, noun: str = "caption") -> str:
        """`37 captions (1.2%) were longer than 77 tokens; 812 tokens cut`."""
        captions = plural(self.captions, noun)
        share = f" ({self.captions / self.rows:.1%})" if self.rows > 1 else ""
        were = "was" if self.captions == 1 else "were"
        return f"{captions}{share} {were} longer than {context_length} tokens; {plural(self.tokens, 'token')} cut"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The counts of one finished task (one shard). `a + b` adds them up."""

    tasks: int = 0
    rows: int = 0
    rejected: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    spent_s: dict[str, float] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    cut: CutCaptions = CutCaptions()
    accounts: Accounts | None = None

    def __add__(self, other: TaskReport) -> TaskReport:
        return TaskReport(
            tasks=self.tasks + other.tasks,
            rows=self.rows + other.rows,
            rejected=self.rejected + other.rejected,
            rejects=add_counts(self.rejects, other.rejects),
            bytes=self.bytes + other.bytes,
            spent_s=add_seconds(self.spent_s, other.spent_s),
            notes=(*self.notes, *other.notes),
            cut=self.cut + other.cut,
            accounts=total(self.accounts, other.accounts),
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished task: its worker, its report, and its wall-clock time (s)."""

    worker: int
    task: str
    report: TaskReport
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """A progress report: rows done and rejected, tasks finished, and timings (s), all since the last one.

    planned: the total number of tasks, reported once; planned_rows: rows, if known. doing: the current activity before
    there are rows to count, such as loading a model. finished: the task that this step ends. rejects: `rejected` by
    error class, if known. bytes: received bytes.
    """

    rows: int = 0
    rejected: int = 0
    tasks: int = 0
    planned: int | None = None
    planned_rows: int | None = None
    doing: str = ""
    rejects: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    spent_s: dict[str, float] = field(default_factory=dict)
    finished: Finished | None = None


class Tally:
    """The running total of a worker's current task, so that its steps add up to its report, whatever happens."""

    def __init__(self, worker: int, task: str) -> None:
        self._worker = worker
        self._task = task
        self._begun = time.perf_counter()
        self._said = Progress()

    def hear(self, step: Progress) -> Progress:
        """Record a step; returns it."""
        self._said = Progress(
            rows=self._said.rows + step.rows,
            rejected=self._said.rejected + step.rejected,
            spent_s=add_seconds(self._said.spent_s, step.spent_s),
        )
        return step

    def finish(self, report: TaskReport) -> Progress:
        """The step that ends the task, with the counts not yet reported."""
        finished = Finished(self._worker, self._task, report, time.perf_counter() - self._begun)
        return self._rest(report, tasks=1, finished=finished)

    def give_up(self, tasks: int = 0) -> Progress:
        """The step that reverts the counts of a failed task; `tasks` is 1 if it will not be retried."""
        return self._rest(TaskReport(), tasks, None)

    def _rest(self, report: TaskReport, tasks: int, finished: Finished | None) -> Progress:
        unsaid = add_seconds(report.spent_s, {name: -seconds for name, seconds in self._said.spent_s.items()})
        return Progress(
            rows=report.rows - self._said.rows,
            rejected=report.rejected - self._said.rejected,
            tasks=tasks,
            spent_s=unsaid,
            finished=finished,
        )


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """The reject limit: `most` samples, or `most` percent of all. Calling it returns whether it is exceeded."""

    most: float
    percent: bool = False

    def __call__(self, rejected: int, total: int) -> bool:
        """Whether that many rejects among that many samples exceed the limit."""
        return rejected > (total * self.most / 100 if self.percent else self.most)

    def hopeless(self, rejected: int, total: int) -> bool:
        """Whether to stop early: a count is exceeded, or a share by more than twice after 1,000 samples."""
        if not self.percent:
            return self(rejected, total)
        return total >= SAMPLES_TO_JUDGE_BY and rejected > 2 * total * self.most / 100

    def __str__(self) -> str:
        return f"{self.most:g}{'%' * self.percent}"


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A listener that shows nothing."""
