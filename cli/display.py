"""How results and progress look: bars on a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from embedpipe.progress import Progress

_PLAIN_EVERY_S = 5.0


def print_json(value: Any) -> None:
    """A result (dataclass, dict, list) as JSON on stdout."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """`value` with dataclasses as dicts and tuples as lists, for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table on stdout; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", header_style="bold")
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows) and bool(rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(grid, markup=False)


def _cell(value: Any) -> Any:
    from rich.text import Text

    if isinstance(value, float):
        return Text(f"{value:.4f}")
    return Text("" if value is None else f"{value:,}" if isinstance(value, int) else str(value))


@contextlib.contextmanager
def progress(what: str, unit: str = "samples", task_unit: str = "shards") -> Iterator[ProgressView]:
    """Show the progress of a job on stderr while the block runs."""
    view = (_TerminalView if sys.stderr.isatty() else _PlainView)(what, unit, task_unit)
    try:
        yield view
    finally:
        view.close()


class ProgressView:
    """Adds up what a job reports; it is the `Listener` that jobs take."""

    def __init__(self, what: str, unit: str, task_unit: str) -> None:
        self.what = what
        self.unit = unit
        self.task_unit = task_unit
        self.note = ""
        self.tasks: int | None = None
        self.rows = self.rejected = self.done = 0
        self._begun = time.monotonic()

    def __call__(self, step: Progress) -> None:
        """Take one step."""
        self.tasks = step.planned if step.planned is not None else self.tasks
        self.rows += step.rows
        self.rejected += step.rejected
        self.done += step.tasks
        self.show()

    def at_step(self, step: int, steps: int, samples: int, loss: float) -> None:
        """Take one training step, number `step` of `steps` (a resumed run begins in the middle)."""
        self.done, self.tasks = step, steps
        self.rows += samples
        self.note = f", loss {loss:.4f}"
        self.show()

    def rate(self) -> float:
        """Rows per second since the start."""
        return self.rows / max(1e-9, time.monotonic() - self._begun)

    def text(self) -> str:
        """Where the job is, in one line."""
        tasks = f"{self.done:,}/{self.tasks:,} {self.task_unit}, " if self.tasks is not None else ""
        rejected = f", {self.rejected:,} rejected" if self.rejected else ""
        return f"{tasks}{self.rows:,} {self.unit}{rejected}, {self.rate():,.1f}/s{self.note}"

    def show(self) -> None:
        """Bring the display up to date."""

    def close(self) -> None:
        """End the display."""


class _PlainView(ProgressView):
    def __init__(self, what: str, unit: str, task_unit: str) -> None:
        super().__init__(what, unit, task_unit)
        self._shown = time.monotonic()

    def show(self) -> None:
        if time.monotonic() - self._shown >= _PLAIN_EVERY_S:
            self._shown = time.monotonic()
            click.echo(f"{self.what}: {self.text()}", err=True)


class _TerminalView(ProgressView):
    def __init__(self, what: str, unit: str, task_unit: str) -> None:
        super().__init__(what, unit, task_unit)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar = self._bars.add_task(what, total=None, text="starting")
        self._bars.start()

    def show(self) -> None:
        self._bars.update(self._bar, total=self.tasks, completed=self.done, text=self.text())

    def close(self) -> None:
        self._bars.stop()


def seconds(value: float) -> str:
    """2.3 s, 4 min 10 s, 3 h 5 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
