"""Disk space that the rest of a run needs, for the disk-full error."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np

from .. import files, manifest
from ..errors import DiskFull
from ..execute import Task
from ..manifest import RunCard

_METADATA_BYTES_PER_ROW = 100
# The typical length of web captions; shards already written give a better estimate.
_TOKENS_PER_CAPTION = 16


def with_need(
    problem: DiskFull, out: str, run: RunCard, todo: Sequence[Task], rows_seen: int, workers: int
) -> DiskFull:
    """`problem` with the required and the free space.

    todo: the run's shards; rows_seen: how many rows it had encoded when the disk was full, on `workers` workers.
    """
    committed = set(manifest.committed_numbers(out))
    left = [task for task in todo if task.number not in committed]
    needed = _estimate(out, run, left, rows_seen, workers)
    said = f"{len(left)} shard{'s are' if len(left) != 1 else ' is'} left"
    if needed is not None:
        said += f", about {size(needed)} more are needed"
    if files.is_local(out):
        said += f", {size(shutil.disk_usage(files.local_path(out)).free)} are free"
    return DiskFull(f"{problem.what}: {said}", problem.remedy)


def _estimate(out: str, run: RunCard, left: Sequence[Task], rows_seen: int, workers: int) -> int | None:
    """Bytes that the remaining shards need: from the shards written so far, else the rows seen; None if unknown."""
    still: int = sum(task.payload.bytes for task in left)
    done = list(manifest.read_manifests(out, run.shard_digits))
    read, written = sum(entry.source.bytes for entry in done), sum(entry.bytes() for entry in done)
    if read and written:
        return round(written * still / read)
    begun: int = sum(task.payload.bytes for task in left[:workers])
    if not begun or not rows_seen or run.encoder is None:
        return None
    sides = sum(bool(run.options[side]) for side in ("images", "texts"))
    numbers = sides * run.encoder.dim
    if run.token_width is not None:
        numbers += run.token_width * min(_TOKENS_PER_CAPTION, run.encoder.context_length)
    per_row = numbers * np.dtype(run.encoder.dtype).itemsize + _METADATA_BYTES_PER_ROW
    return round(rows_seen * per_row * still / begun)


def size(count: int) -> str:
    """512 bytes, 1.5 kB, 23.0 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
