"""How results and progress look: bars on a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from embedpipe.accounts import Accounts
from embedpipe.progress import Finished, Progress, add_counts, add_seconds
from embedpipe.visible import visible

from .fields import with_options
from .terminal import drawn, exact, harmless

_Report = TypeVar("_Report")

_PLAIN_EVERY_S = 5.0
_WORTH_SAYING_S = 1.5


def print_json(value: Any, rows: bool = False) -> None:
    """A result (dataclass, dict, list) as JSON on stdout. rows: of data, whose urls are printed as they are."""
    print_line(as_json(plain(value), indent=2), rows)


def print_line(text: str, rows: bool) -> None:
    """A line on stdout. rows: it holds rows of data, whose urls are printed as they are; else without secrets."""
    click.echo(text, file=exact(sys.stdout) if rows else sys.stdout)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON in ASCII without control characters: exact, whatever the values hold, and safe on a terminal."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def show(report: _Report | None, as_json: bool, print_report: Callable[[_Report], None]) -> None:
    """A result as JSON or by `print_report`; nothing where there is none, as in all processes but the first."""
    if report is not None and as_json:
        print_json(report)
    elif report is not None:
        print_report(report)


def plain(value: Any) -> Any:
    """`value` with dataclasses as dicts and tuples as lists, for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def note_old_card(path: str, dated: bool, more: str = "") -> None:
    """Say on stderr of a data set or run that version 0.1 wrote it, where that is so. more: what follows from it."""
    if dated:
        from embedpipe.clip_model.encoder_card import BEFORE_ACTIVATION

        click.echo(f"note: {path}: {BEFORE_ACTIVATION}{more}", err=True)


class _Notices(logging.Handler):
    """What the libraries log, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(visible(with_options(f"note: {record.getMessage()}")), err=True)


_OURS = ("embedpipe", "dalle2_core")


@contextlib.contextmanager
def notices_shown_once() -> Iterator[None]:
    """Within the block what we log goes to no handler of the root logger: open_clip, for one, makes it print, too."""
    before = [(logger, logger.propagate) for logger in map(logging.getLogger, _OURS)]
    for logger, _ in before:
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagated in before:
            logger.propagate = propagated


def show_notices() -> None:
    """Show what `embedpipe` and `dalle2_core` log from warnings on."""
    for name in _OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Notices) for handler in logger.handlers):
            logger.addHandler(_Notices())


def note_old_data(*paths: str) -> None:
    """Say on stderr of each data set that version 0.1 wrote it, where that is so; of torchrun's, the first process."""
    from embedpipe import manifest

    for path in paths if os.environ.get("RANK", "0") == "0" else ():
        run = manifest.read_run(path)
        note_old_card(path, run is not None and run.dated)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table on stdout; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(visible(title)) if title else None, title_justify="left", header_style="bold")
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows) and bool(rows)
        grid.add_column(Text(visible(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    console = Console(file=drawn(sys.stdout), width=None if sys.stdout.isatty() else 120)
    console.print(grid, markup=False)


def _cell(value: Any) -> Any:
    from rich.text import Text

    if isinstance(value, float):
        return Text(f"{value:.4f}")
    return Text("" if value is None else f"{value:,}" if isinstance(value, int) else visible(str(value)))


@contextlib.contextmanager
def progress(
    what: str, unit: str = "samples", task_unit: str = "shards", verbose: bool = False
) -> Iterator[ProgressView]:
    """Show the progress of a job on stderr while the block runs; `verbose` adds a line for each finished task."""
    view = (_TerminalView if sys.stderr.isatty() else _PlainView)(what, unit, task_unit, verbose)
    try:
        yield view
    finally:
        view.close()


class ProgressView:
    """Adds up what a job reports; it is the `Listener` that jobs take."""

    def __init__(self, what: str, unit: str, task_unit: str, verbose: bool = False) -> None:
        self.what = what
        self.unit = unit
        self.task_unit = task_unit
        self.verbose = verbose
        self.note = ""
        self.doing = ""
        self.spent_s: dict[str, float] = {}
        self.tasks: int | None = None
        self.planned_rows: int | None = None
        self.rejects: dict[str, int] = {}
        self.bytes = 0
        self.rows = self.rejected = self.done = 0
        self._begun = time.monotonic()

    def __call__(self, step: Progress) -> None:
        """Take one step."""
        self.tasks = step.planned if step.planned is not None else self.tasks
        self.rows += step.rows
        self.rejected += step.rejected
        self.planned_rows = step.planned_rows if step.planned_rows is not None else self.planned_rows
        self.rejects = add_counts(self.rejects, step.rejects)
        self.bytes += step.bytes
        self.done += step.tasks
        self.spent_s = add_seconds(self.spent_s, step.spent_s)
        if step.doing or self.rows:
            self.doing = step.doing
            self.show_doing()
        if self.verbose and step.finished is not None:
            self.line(finished_line(step.finished, self.unit))
        self.show()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        click.echo(visible(text), err=True)

    def at_step(self, step: int, steps: int, samples: int, loss: float) -> None:
        """Take one training step, number `step` of `steps` (a resumed run begins in the middle)."""
        self.done, self.tasks = step, steps
        self.rows += samples
        self.note = f", loss {loss:.4f}"
        self.show()

    def at_row(self, row: int, planned: int) -> None:
        """Be at row number `row` of `planned`, whatever was before: a part may be done again."""
        self.rows, self.planned_rows = row, planned
        self.show()

    def rate(self) -> float:
        """Rows per second since the start."""
        return self.rows / self.seconds()

    def seconds(self) -> float:
        """Since the start."""
        return max(1e-9, time.monotonic() - self._begun)

    def text(self) -> str:
        """Where the job is, in one line."""
        return self.doing or self.counts()

    def counts(self) -> str:
        """What is done, in one line."""
        tasks = f"{self.done:,}/{self.tasks:,} {self.task_unit}, " if self.tasks is not None else ""
        rejected = f", {self.rejected:,} rejected" if self.rejected else ""
        if self.rejects:
            rejected = f", {1 - self.rejected / max(1, self.rows):.1%} ok ({worst(self.rejects)})"
        received = f", {self.bytes / 1e6 / self.seconds():,.1f} MB/s" if self.bytes else ""
        spent = sum(self.spent_s.values())
        where = f", {shares({name: s / spent for name, s in self.spent_s.items()})}" if spent > 0 else ""
        return f"{tasks}{_counted(self.rows, self.unit)}{rejected}, {self.rate():,.1f}/s{received}{where}{self.note}"

    def left(self) -> str:
        """How long it will take, where the number of rows is known."""
        if not self.planned_rows or not self.rows:
            return ""
        return f", {seconds(max(0, self.planned_rows - self.rows) / self.rate())} left"

    def show(self) -> None:
        """Bring the display up to date."""

    def show_doing(self) -> None:
        """Tell what goes on, or went on until now: there may be nothing else to show for a while."""

    def close(self) -> None:
        """End the display."""


class _PlainView(ProgressView):
    def __init__(self, what: str, unit: str, task_unit: str, verbose: bool = False) -> None:
        super().__init__(what, unit, task_unit, verbose)
        self._shown = time.monotonic()
        self._soon = threading.Timer(0, lambda: None)
        self._last: tuple[int, int] | None = None  # the counts of the last line

    def show(self) -> None:
        if time.monotonic() - self._shown >= _PLAIN_EVERY_S:
            self._shown = time.monotonic()
            self._last = (self.done, self.rows)
            self.line(f"{self.what}: {self.text()}{self.left()}")

    def show_doing(self) -> None:
        self._soon.cancel()
        if self.doing:
            self._soon = threading.Timer(_WORTH_SAYING_S, self.line, [f"{self.what}: {self.doing}"])
            self._soon.daemon = True
            self._soon.start()

    def close(self) -> None:
        self._soon.cancel()
        if self._last not in (None, (self.done, self.rows)):  # else the last line would tell of the middle
            self.line(f"{self.what}: {self.counts()}")


class _TerminalView(ProgressView):
    def __init__(self, what: str, unit: str, task_unit: str, verbose: bool = False) -> None:
        super().__init__(what, unit, task_unit, verbose)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(file=drawn(sys.stderr)),
            transient=True,
        )
        self._bar = self._bars.add_task(visible(what), total=None, text="starting")
        self._bars.start()
        # rich has put itself in their place, and reads escapes as colours.
        sys.stdout, sys.stderr = harmless(sys.stdout), harmless(sys.stderr)

    def show(self) -> None:
        rows = self.planned_rows is not None
        total, done = (self.planned_rows, self.rows) if rows else (self.tasks, self.done)
        self._bars.update(self._bar, total=total, completed=done, text=visible(self.text()))

    def line(self, text: str) -> None:
        self._bars.console.print(visible(text), markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bars.stop()


def shares(parts: dict[str, float]) -> str:
    """`decode 61%, model 30%`: parts of a whole, the large ones first; what rounds to nothing is left out."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered if share >= 0.005)


def worst(rejects: dict[str, int], most: int = 3) -> str:
    """`http_404 120, timeout 8, 2 other`: the most frequent reasons."""
    ordered = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} {count:,}" for name, count in ordered[:most]]
    other = sum(count for _, count in ordered[most:])
    return ", ".join(shown + [f"{other:,} other"] * bool(other))


def _counted(count: int, unit: str) -> str:
    """`1 query`, `2 queries`: a count of a unit that is given in the plural."""
    single = unit[:-3] + "y" if unit.endswith("ies") else unit.removesuffix("s")
    return f"{count:,} {single if count == 1 else unit}"


def finished_line(done: Finished, unit: str) -> str:
    """What a worker did of one task, and where its time went, as shares of the time by the clock."""
    report = done.report
    seconds_taken = max(done.seconds, 1e-9)
    rejected = f", {report.rejected:,} rejected" if report.rejected else ""
    where = shares({name: spent / seconds_taken for name, spent in report.spent_s.items()})
    rate = (report.rows + report.rejected) / seconds_taken
    counts = f"{_counted(report.rows, unit)}{rejected}, {seconds(done.seconds)}, {rate:,.1f}/s"
    return f"worker {done.worker}: {done.task}: {counts}{', ' * bool(where)}{where}"


def text_histogram(lower: float, upper: float, counts: Sequence[int], width: int = 40, digits: int = 3) -> list[str]:
    """Equal bins from `lower` to `upper` as lines of bars, the fullest one `width` characters long."""
    if lower == upper:
        counts = [sum(counts)]
    step = (upper - lower) / len(counts)
    most = max(counts)
    lines = []
    for i, count in enumerate(counts):
        bar = "█" * round(width * count / most) or "▏" * bool(count)
        low, high = (f"{lower + (i + side) * step:{digits + 3 + (not side)}.{digits}f}" for side in (0, 1))
        lines.append(f"{low} to {high}  {bar:<{width}} {count:,}")
    return lines


def seconds(value: float) -> str:
    """2.3 s, 4 min 10 s, 3 h 5 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_passed_over(*accounts: Accounts | None) -> None:
    """A line for each input in which something was passed over."""
    for each in accounts:
        if each is not None and (said := each.said()):
            click.echo(said)


def print_worst_hosts(hosts: Sequence[Any]) -> None:
    """A table of hosts (`HostFailures`) and why urls there failed; nothing where there are none."""
    if hosts:
        rows = [(entry.host, entry.failed, worst(entry.classes)) for entry in hosts]
        print_table(["host", "rejected", "because"], rows)
