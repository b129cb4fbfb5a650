"""Reads the pages of results: their tables, and single ratios in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NUMBER = r"(\d+(?:\.\d+)?)"
_SPREAD = re.compile(rf"^{_NUMBER}(?: \({_NUMBER}–{_NUMBER}\))?×?$")
NO_RESULT = "not measured"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of results. name: of its file."""

    name: str
    text: str

    def rows(self) -> list[tuple[list[str], list[str]]]:
        """All rows of its tables, each with the head of its table."""
        found: list[tuple[list[str], list[str]]] = []
        head: list[str] | None = None
        for line in self.text.splitlines():
            if not line.startswith("|"):
                head = None
                continue
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if head is None:
                head = cells
            elif not all(re.fullmatch(r"-+:?", cell) for cell in cells):
                found.append((head, cells))
        return found

    def cell(self, row: str, column: str = "") -> str | None:
        """The cell in that row and column; without a column, the first after the row's name. None if there is none."""
        for head, cells in self.rows():
            if cells[0] == row and (not column or column in head):
                return cells[head.index(column) if column else 1]
        return None

    def fact(self, name: str) -> str:
        """A circumstance of the run: date, machine …"""
        return self.cell(name) or "unknown"

    @property
    def day(self) -> str:
        """When it was measured: 2026-11-24."""
        return self.fact("date").split(" ")[0]


def newest(results: Path, benchmark: str) -> Page | None:
    """The newest page of a benchmark; None if there is none."""
    named = [path for path in results.glob("*.md") if re.fullmatch(rf"{benchmark}_[\d-]{{10}}", path.stem)]
    return Page(max(named).name, max(named).read_text()) if named else None


def numbers(cell: str) -> tuple[float, float, float] | None:
    """Median, smallest and largest of a cell as `measure.spread` writes it; None for any other text."""
    match = _SPREAD.match(cell)
    if match is None:
        return None
    median, least, most = (float(it) if it is not None else float(match[1]) for it in match.groups())
    return median, least, most


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio with a goal, and where its value stands. at_most: the goal is not to be exceeded."""

    what: str
    goal: float
    benchmark: str
    line: str
    column: str = ""
    at_most: bool = False

    def row(self, page: Page | None) -> list[str]:
        """The row of the table: ratio, goal, value, whether it is met, when it was measured, load average then."""
        goal = f"{'≤' if self.at_most else '≥'} {self.goal:.3g}"
        cell = page.cell(self.line, self.column) if page is not None else None
        found = numbers(cell) if cell is not None else None
        if page is None or cell is None or found is None:
            return [self.what, goal, NO_RESULT, "", "", ""]
        met = found[0] <= self.goal if self.at_most else found[0] >= self.goal
        load = page.fact("load average at the start").split(" ")[0]
        return [self.what, goal, cell.rstrip("×"), "yes" if met else "no", page.day, load]
