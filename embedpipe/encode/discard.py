"""Removing what `encode` wrote to an output, and nothing else."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable

from .. import files, manifest
from ..errors import DatasetError
from ..manifest import RunCard
from ..store import layout


def discard(out: str, run: RunCard) -> None:
    """Remove the data set that `run` describes. Call it while holding the lock of `out`.

    Manifests go first, the files they list next, the run card last: killed at any moment, it leaves an unfinished data
    set, which the same command takes up again. What is not ours is not touched.
    """
    numbers = manifest.committed_numbers(out)
    listed: set[str] = set()
    for number in numbers:
        with contextlib.suppress(DatasetError):  # damaged: its files are found by their names below
            entry = manifest.read_manifest(out, number, run.shard_digits)
            listed.update(record.path for record in entry.files if _is_ours(record.path))
    for number in numbers:
        manifest.retract(out, number, run.shard_digits)
    for path in sorted(listed):
        files.remove(files.join(out, path))
    sweep_leftovers(out, run.shard_digits, range(len(run.plan)))
    manifest.retract_run(out)


def sweep_leftovers(out: str, digits: int, numbers: Iterable[int]) -> None:
    """Remove data files of shards that are not committed: a reader that pairs files by position would take them."""
    leftovers = {path for number in numbers for path in layout.data_paths(number, digits)}
    for folder in layout.FOLDERS:
        there = {posixpath.join(folder, name) for name in files.names(files.join(out, folder))}
        for path in sorted(leftovers & there):
            files.remove(files.join(out, path))


def _is_ours(path: str) -> bool:
    # A manifest is a file like any other: whatever somebody wrote into it, it names nothing outside our folders.
    return posixpath.normpath(path) == path and posixpath.dirname(path) in layout.FOLDERS
