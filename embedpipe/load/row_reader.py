"""Read rows of a data set into the caller's arrays: in order, or to given positions, and checked."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np

from ..errors import DatasetError
from ..store.rows import Rows
from .float16 import all_finite, convert_into

_MOST_OPEN = 8


class ShardArrays(Protocol):
    """The interface that reading needs from a data set. A shard's index counts only shards with rows."""

    path: str

    @property
    def stops(self) -> np.ndarray:
        """The end row (exclusive) of each shard, int64."""
        ...

    def open_rows(self, shard: int, modality: str) -> Rows:
        """Open the rows of one modality of a shard, for reading in pieces; close it after use."""
        ...


class RowReading:
    """Reads rows of one data set; keeps recently used files open. Not thread-safe.

    finite: raise DatasetError, naming file and row, for a row with NaN or infinity.
    """

    def __init__(self, shards: ShardArrays, finite: bool = True) -> None:
        self._shards = shards
        self._finite = finite
        self._open: OrderedDict[tuple[int, str], Rows] = OrderedDict()
        self._room = np.empty((0, 0), np.float32)

    def __enter__(self) -> RowReading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def in_order(self, start: int, modality: str, out: np.ndarray) -> None:
        """Fill `out` [m, dim], float16 or float32, with the rows from `start` on, across shards."""
        filled = 0
        while filled < len(out):
            shard, first, stop = self._place(start + filled)
            rows = self._rows(shard, modality)
            count = min(len(out) - filled, stop - start - filled)
            inside = start + filled - first
            if out.dtype == rows.dtype and not self._finite:
                rows.read(inside, out[filled : filled + count])
            else:
                count = min(count, rows.rows_at_once)
                self._checked(rows, inside, out[filled : filled + count], first)
            filled += count

    def pick(self, wanted: np.ndarray, modality: str, out: np.ndarray) -> None:
        """Fill `out` with the rows `wanted`, ascending numbers, in the stored dtype."""
        done = 0
        while done < len(wanted):
            begin = int(wanted[done])
            shard, first, stop = self._place(begin)
            rows = self._rows(shard, modality)
            end = int(np.searchsorted(wanted, min(stop, begin + rows.rows_at_once)))
            span, part = wanted[done:end] - begin, out[done:end]
            if int(span[-1]) + 1 == len(span):
                self._read(rows, begin - first, part, first)
            else:
                room = self._scratch(rows, int(span[-1]) + 1)
                self._read(rows, begin - first, room, first, only=span)
                np.take(room, span, axis=0, out=part, mode="clip")
            done = end

    def _place(self, row: int) -> tuple[int, int, int]:
        """(shard, its first row, its end row) of a row."""
        stops = self._shards.stops
        shard = int(np.searchsorted(stops, row, side="right"))
        return shard, int(stops[shard - 1]) if shard else 0, int(stops[shard])

    def _rows(self, shard: int, modality: str) -> Rows:
        name = (shard, modality)
        if name not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[name] = self._shards.open_rows(shard, modality)
        self._open.move_to_end(name)
        return self._open[name]

    def _scratch(self, rows: Rows, count: int) -> np.ndarray:
        if self._room.dtype != rows.dtype or self._room.shape[1:] != rows.shape[1:] or len(self._room) < count:
            self._room = np.empty((max(count, rows.rows_at_once), rows.shape[1]), rows.dtype)
        return self._room[:count]

    def _checked(self, rows: Rows, start: int, out: np.ndarray, first: int) -> None:
        if out.dtype == rows.dtype:
            self._read(rows, start, out, first)
        else:
            room = self._scratch(rows, len(out))
            self._read(rows, start, room, first)
            if self._finite or all_finite(room):
                convert_into(room, out)
            else:
                np.copyto(out, room, casting="same_kind")

    def _read(self, rows: Rows, start: int, out: np.ndarray, first: int, only: np.ndarray | None = None) -> None:
        """Read and check. first: number of the file's first row in the data set; only: those that matter, or None."""
        rows.read(start, out)
        if not self._finite or all_finite(out):
            return
        broken = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if only is not None:
            broken = np.intersect1d(broken, only)
        if broken.size:
            inside = start + int(broken[0])
            raise not_finite(rows.location, inside, self._shards.path, first + inside)


def not_finite(location: str, inside: int, path: str, row: int) -> DatasetError:
    """The error for the row `inside` a file, which is `row` of the data set at `path`."""
    return DatasetError(
        f"{location}: row {inside} (row {row} of {path}) holds NaN or infinity",
        "Write that file again, or leave the row out (`rows=` of EmbeddingLoader)",
    )
