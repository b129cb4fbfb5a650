"""What killed runs leave in an embedding data set: found by its name, and removed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from .. import files
from . import layout


def sweep_temporaries(out: str) -> None:
    """Remove half-written files. Call it only while holding the lock of `out`."""
    for folder in (out, *(files.join(out, name) for name in layout.FOLDERS)):
        files.sweep_temporaries(folder)


def sweep_leftovers(out: str, digits: int, numbers: Iterable[int]) -> None:
    """Remove data files of shards that are not committed: a reader that pairs files by position would take them."""
    leftovers = {path for number in numbers for path in layout.data_paths(number, digits)}
    for folder in layout.FOLDERS:
        there = {posixpath.join(folder, name) for name in files.names(files.join(out, folder))}
        for path in sorted(leftovers & there):
            files.remove(files.join(out, path))
