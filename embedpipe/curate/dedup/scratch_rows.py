"""Rows rewritten in another order to a scratch file, so that each cluster is one sequential read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from ...containment import open_regular
from ...errors import DiskFull


def require_disk_space(path: Path, need: int, what: str) -> None:
    """Raise DiskFull unless a scratch file of `need` bytes fits at `path`; an existing file counts."""
    free = shutil.disk_usage(path.parent).free + (path.stat().st_size if path.exists() else 0)
    if free < need:
        raise DiskFull(
            f"{path.parent}: {what} takes {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            "Free some space or give OUT on a larger disk",
        )


class ScratchRows:
    """Rows [n, dim] of one dtype in the file `path`, written at their new positions and read back in that order.

    Several threads may read at once.
    """

    def __init__(self, path: Path, dim: int, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._dim = dim
        self._row_bytes = dim * self._dtype.itemsize
        self._file = open_regular(path, os.O_RDWR | os.O_CREAT)

    def __enter__(self) -> ScratchRows:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, rows: np.ndarray, places: np.ndarray) -> None:
        """Put row i of `rows` at `places[i]`."""
        order = np.argsort(places)
        sorted_places = places[order]
        # Adjacent rows are written together.
        for run in np.split(np.arange(len(order)), np.flatnonzero(np.diff(sorted_places) != 1) + 1):
            if len(run):
                block = np.ascontiguousarray(rows[order[run]], self._dtype)
                self._write_all(memoryview(block.data).cast("B"), int(sorted_places[run[0]]) * self._row_bytes)

    def sync(self) -> None:
        """Flush everything written to disk (fsync)."""
        os.fsync(self._file)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows at positions [start, stop), float32."""
        out = np.empty((stop - start, self._dim), self._dtype)
        view, place, done = memoryview(out.data).cast("B"), start * self._row_bytes, 0
        while done < len(view):
            got = os.preadv(self._file, [view[done:]], place + done)
            if not got:
                raise OSError(f"the scratch file ends {len(view) - done} bytes early")
            done += got
        return out.astype(np.float32)

    def _write_all(self, view: memoryview, place: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], place + done)
