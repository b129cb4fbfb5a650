"""Remove leftover files of killed runs from an embedding data set, recognised by name."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable

from .. import files
from . import layout


def sweep_dataset_temporaries(out: str, holds: Callable[[int], bool] | None = None) -> None:
    """Remove partially written files. Call it only with `out` locked, or the part whose numbers `holds`."""
    for folder in (out, *(files.join(out, name) for name in layout.FOLDERS)):
        if holds is None:
            files.sweep_temporaries(folder)
        else:
            files.sweep_temporaries(folder, lambda name: (n := layout.number_of(name)) is not None and holds(n))


def sweep_leftovers(out: str, digits: int, numbers: Iterable[int]) -> None:
    """Remove data files of uncommitted shards, which a reader that pairs files by position would use."""
    gone = set(numbers)
    for folder in layout.FOLDERS if gone else ():
        for name in files.names(files.join(out, folder)):
            number = layout.number_of(name)
            # Only files with these names: neither manifests nor foreign files.
            if number in gone and posixpath.join(folder, name) in layout.data_paths(number, digits):
                files.remove(files.join(out, folder, name))
