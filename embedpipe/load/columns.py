"""Array-like columns over all shards of an embedding data set, read lazily."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ..clip_model.encoder_card import EncoderCard
from ..ragged import RaggedRows
from .norms import Norms, RawColumn
from .row_index import Index, as_row, as_rows


class OpenedShards(Protocol):
    """The interface that columns need from a data set. A shard's index counts only shards with rows."""

    card: EncoderCard

    def __len__(self) -> int: ...

    @property
    def stops(self) -> np.ndarray:
        """The end row (exclusive) of each shard, int64."""
        ...

    def array(self, shard: int, modality: str) -> np.ndarray:
        """The embeddings of a shard, [n, dim]."""
        ...

    def token_states(self, shard: int) -> RaggedRows:
        """The token states of a shard's captions."""
        ...

    def norms(self, modality: str) -> Norms | None:
        """The norms of rows before normalisation; None if the stored rows are not normalised."""
        ...


def by_shard(rows: np.ndarray, stops: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, which of `rows` are in it, their positions in it), shard by shard."""
    owner = np.searchsorted(stops, rows, side="right")
    for shard in np.unique(owner):
        mine = np.flatnonzero(owner == shard)
        yield int(shard), mine, rows[mine] - (stops[shard - 1] if shard else 0)


class EmbeddingColumn:
    """One modality's embeddings.

    `len(column)`, `column.dim`, `column[i]` → [dim], `column[a:b]` and `column[[3, 1, 2]]` → [n, dim], in the stored
    dtype. `column.read()` → all of it as float32. `column.raw()` → the same rows before normalisation.
    """

    def __init__(self, shards: OpenedShards, modality: str) -> None:
        self._shards = shards
        self._modality = modality

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self._shards.card.dim

    def __getitem__(self, index: Index) -> np.ndarray:
        if isinstance(index, int | np.integer):
            only: np.ndarray = self._rows(np.array([as_row(index, len(self))]))[0]
            return only
        return self._rows(as_rows(index, len(self)))

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.dim), self._shards.card.dtype)
        for shard, mine, places in by_shard(rows, self._shards.stops):
            out[mine] = self._shards.array(shard, self._modality)[places]
        return out

    def read(self) -> np.ndarray:
        """All rows as float32 [n, dim]: for data that fits in memory."""
        out = np.empty((len(self), self.dim), np.float32)
        start = 0
        for shard, stop in enumerate(self._shards.stops):
            out[start:stop] = self._shards.array(shard, self._modality)
            start = stop
        return out

    def raw(self) -> RawColumn:
        """The rows before normalisation, as the tower's projection gave them, float32: a column with the same
        interface.

        `column.raw()[7]`, `column.raw()[100:200]`, `column.raw().read()`; all rows: `batches(raw=True)`. Raises
        DatasetError if the data set has no norms.
        """
        return RawColumn(self, self._shards.norms(self._modality))


class RaggedColumn:
    """The token states of each caption: one row per row of the data set, each as long as its caption.

    `len(column)`, `column.width`, `column[i]` → [length of i, width]; `column[a:b]` and `column[[3, 1, 2]]` → (states
    [n, longest, width] padded with zeros, mask [n, longest] bool, True at real tokens), in the stored dtype.
    """

    def __init__(self, shards: OpenedShards, width: int) -> None:
        self._shards = shards
        self.width = width

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Index) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        if isinstance(index, int | np.integer):
            return self._rows(np.array([as_row(index, len(self))])).values
        return self._rows(as_rows(index, len(self))).padded()

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(states [n, longest, width], mask [n, longest]) of the given rows."""
        return self._rows(as_rows(rows, len(self))).padded()

    def lengths(self) -> np.ndarray:
        """The number of real tokens of every row: int32 [n]."""
        parts = [self._shards.token_states(shard).lengths for shard in range(len(self._shards.stops))]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def _rows(self, rows: np.ndarray) -> RaggedRows:
        """The given rows, copied into memory."""
        lengths, starts = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int64)
        parts, filled = [np.empty((0, self.width), self._shards.card.dtype)], 0
        for shard, mine, places in by_shard(rows, self._shards.stops):
            found = self._shards.token_states(shard).take(places)
            lengths[mine] = found.lengths
            starts[mine] = filled + np.cumsum(found.lengths, dtype=np.int64) - found.lengths
            parts.append(found.flat())
            filled += len(parts[-1])
        return RaggedRows(np.concatenate(parts), starts, lengths)
