"""Overwrite an output: remove the files that `encode` wrote, and only those."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath

from .. import files, manifest
from ..errors import DatasetError
from ..manifest import RunCard
from ..store import layout
from ..store.cleanup import sweep_leftovers


def discard_output(out: str, run: RunCard) -> None:
    """Remove the data set that `run` describes. Call it with `out` locked.

    Manifests go first, the files they list next, the run card last: killed at any moment, it leaves an unfinished data
    set, which the same command resumes. Foreign files are not touched.
    """
    numbers = manifest.committed_numbers(out)
    listed: set[str] = set()
    for number in numbers:
        with contextlib.suppress(DatasetError):  # damaged: its files are found by name below
            entry = manifest.read_manifest(out, number, run.shard_digits)
            listed.update(record.path for record in entry.files if _is_ours(record.path))
    manifest.write_run(out, dataclasses.replace(run, pending=tuple(range(len(run.plan)))))
    for number in numbers:
        manifest.retract(out, number, run.shard_digits)
    for path in sorted(listed):
        files.remove(files.join(out, path))
    sweep_leftovers(out, run.shard_digits, range(len(run.plan)))
    manifest.retract_run(out)


def _is_ours(path: str) -> bool:
    # Manifests are untrusted: no entry may lead outside the data set's folders.
    return posixpath.normpath(path) == path and posixpath.dirname(path) in layout.FOLDERS
