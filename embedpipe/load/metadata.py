"""Metadata of an embedding data set: array-like columns over the tables of all shards, read lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import DatasetError, did_you_mean
from .columns import by_shard
from .lru_cache import ByteLRUCache
from .row_index import Index, as_row, as_rows

if TYPE_CHECKING:
    from .dataset import EmbeddingDataset

_HELD_BYTES = 256 << 20

ReadTable = Callable[[int, tuple[str, ...]], pa.Table]
"""(place of a shard among those that hold rows, columns) → its table."""


class MetadataColumns:
    """All metadata columns of a data set; row i is the same sample as row i of everything else.

    `metadata["caption"]` → one column; `metadata[7]` → dict; `metadata[a:b]`, `metadata[[3, 1, 2]]` → pyarrow Table;
    `metadata.take(rows, ("key", "caption"))` → Table of some columns; `metadata(shard)` → a whole shard's table. Only
    the requested shards and columns are read. Raises DatasetError, IndexError.
    """

    def __init__(self, path: str, names: tuple[str, ...], stops: np.ndarray, read: ReadTable) -> None:
        self._path = path
        self.names = names
        self._stops = stops
        self._read = read
        self._held = ByteLRUCache(_HELD_BYTES)

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def __call__(self, shard: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        """The rows of a shard, by its index among those with rows, of `columns` or all."""
        columns = self._known(columns)
        return self._held.get((shard, columns), lambda: self._read(shard, columns))

    def __iter__(self) -> Iterator[str]:
        raise TypeError("iterate over .names, or over a column such as metadata['key']")

    def __getitem__(self, index: str | Index) -> Any:
        if isinstance(index, str):
            return MetadataColumn(self, index)
        if isinstance(index, int | np.integer):
            return self.take(np.array([as_row(index, len(self))])).to_pylist()[0]
        return self.take(as_rows(index, len(self)))

    def take(self, rows: Index, columns: tuple[str, ...] | None = None) -> pa.Table:
        """`columns` (or all) of some rows, in the given order."""
        wanted, columns = as_rows(rows, len(self)), self._known(columns)  # type: ignore[arg-type]
        parts, order = [], []
        for shard, mine, places in by_shard(wanted, self._stops):
            parts.append(self(shard, columns).take(pa.array(places)))
            order.append(mine)
        if not parts:
            return self(0, columns).slice(0, 0) if len(self._stops) else pa.table({name: [] for name in columns})
        return pa.concat_tables(parts, promote_options="permissive").take(pa.array(np.argsort(np.concatenate(order))))

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, all rows. Raises DatasetError with similar names for an unknown column."""
        self._known((name,))
        parts = [self._read(shard, (name,)).column(0).combine_chunks() for shard in range(len(self._stops))]
        return pa.chunked_array(parts) if parts else pa.chunked_array([], pa.string())

    def _known(self, columns: tuple[str, ...] | None) -> tuple[str, ...]:
        for name in columns or ():
            if name not in self.names:
                raise DatasetError(f"{self._path}: no metadata column {name!r}", did_you_mean(name, self.names))
        return self.names if columns is None else columns


class MetadataColumn:
    """One metadata column: `column[i]` → a Python value, `column[a:b]` and `column[[3, 1, 2]]` → a pyarrow array.

    `column.read()` → all of it, a pyarrow ChunkedArray.
    """

    def __init__(self, columns: MetadataColumns, name: str) -> None:
        self._columns = columns
        self.name = name
        columns._known((name,))

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: Index) -> Any:
        if isinstance(index, int | np.integer):
            row = np.array([as_row(index, len(self))])
            return self._columns.take(row, (self.name,)).column(0)[0].as_py()
        return self._columns.take(index, (self.name,)).column(0).combine_chunks()

    def read(self) -> pa.ChunkedArray:
        """The whole column."""
        return self._columns.column(self.name)


ROWS_AT_ONCE = 100_000


def gather_metadata(dataset: EmbeddingDataset, rows: np.ndarray, columns: tuple[str, ...]) -> pa.Table:
    """`columns` of the rows with these numbers, in the given order."""
    stops = np.array([shard.stop for shard in dataset.shards])
    owner = np.searchsorted(stops, rows, side="right")
    parts, order = [], []
    for shard in np.unique(owner):
        mine = np.flatnonzero(owner == shard)
        parts.append(dataset.metadata(int(shard), columns).take(pa.array(rows[mine] - dataset.shards[shard].start)))
        order.append(mine)
    if not parts:
        return dataset.metadata(0, columns).slice(0, 0)
    back = np.argsort(np.concatenate(order))
    return pa.concat_tables(parts).take(pa.array(back))


def row_chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in chunks that fit in memory for `gather_metadata`."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
