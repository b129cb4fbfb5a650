"""Named selections of rows, each a folder as `filter` leaves one: kept.parquet, subset.npy where there are uids."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import files
from ..curate import selection
from ..errors import InputError, RunMismatch
from ..load import EmbeddingDataset
from ..lock import exclusive
from ..progress import silent
from ..subset import KEPT, read_subset

_NAME = re.compile(r"\w(?:[\w .-]{0,78}[\w-])?")
_MADE_BY = "serve"


@dataclass(frozen=True, slots=True)
class SavedSelection:
    """A selection in a folder. rows: how many; None where its report is missing or of another program."""

    name: str
    path: str
    rows: int | None
    made_by: str


class Selections:
    """The selections of one data set, below a folder."""

    def __init__(self, dataset: EmbeddingDataset, folder: str) -> None:
        self._dataset = dataset
        self.folder = folder

    def listed(self) -> list[SavedSelection]:
        """Those of this data set, by name."""
        if not files.is_folder(self.folder):
            return []
        return sorted(filter(None, map(self._found, files.names(self.folder))), key=lambda it: it.name)

    def _found(self, name: str) -> SavedSelection | None:
        path = files.join(self.folder, name)
        if not _NAME.fullmatch(name) or not files.exists(files.join(path, KEPT)):
            return None
        report = _report(path)
        if report.get("data") not in (None, files.absolute(self._dataset.path)):
            return None
        kept = report.get("kept")
        return SavedSelection(name, path, kept if isinstance(kept, int) else None, str(report.get("made_by", "filter")))

    def rows(self, name: str) -> np.ndarray:
        """int64, ascending. Raises InputError if there is no such selection, or if it is not of this data set."""
        found = self._found(_checked(name))
        if found is None:
            raise InputError(
                f"no selection {name!r}", f"There are {', '.join(it.name for it in self.listed()) or 'none'}"
            )
        return read_subset(self._dataset, found.path)

    def save(self, name: str, rows: np.ndarray, how: dict[str, Any], replace: bool) -> SavedSelection:
        """Save rows (ascending) under a name. how: what was asked for, kept in report.json.

        Raises InputError (a bad name), RunMismatch (there is one of that name, and not `replace`), OutputBusy,
        OutputUnwritable, DiskFull.
        """
        out = files.join(self.folder, _checked(name))
        if not len(rows):
            raise InputError("a selection without rows", "Choose some first")
        with exclusive(out):
            there = files.exists(files.join(out, KEPT))
            if there and self._found(name) is None:  # two data sets may have had one name
                raise RunMismatch(f"there is a selection {name!r} of another data set", "Give another name")
            if there and not replace:
                raise RunMismatch(f"there is a selection {name!r} already", "Give another name, or replace it")
            selection.begin_selection(self._dataset, out)
            selection.write_selected(self._dataset, rows, out, _MADE_BY, whole=False, threads=None, listen=silent)
            everything = len(self._dataset)
            counts = {"rows": everything, "kept": len(rows), "dropped": everything - len(rows)}
            told = {"data": files.absolute(self._dataset.path), "made_by": _MADE_BY}
            selection.end_selection(out, {**told, **counts, "chosen": how})
        return SavedSelection(name, out, len(rows), _MADE_BY)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name.encode()) > 200:
        raise InputError(f"a selection cannot be called {name!r}", "Use letters, digits, spaces, dots, - and _")
    return name


def _report(path: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read_if_there(files.join(path, selection.REPORT)) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
