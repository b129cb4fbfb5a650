"""Exact duplicates: rows whose image files have the same hash, whatever their embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import DatasetError
from ...load import EmbeddingDataset

_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class SameContent:
    """rows: int64, ascending, each with the same file as a row of higher priority. of: that row, int64."""

    rows: np.ndarray
    of: np.ndarray


def same_content(dataset: EmbeddingDataset, priority: np.ndarray) -> SameContent:
    """Compare the column sha256 of all rows; a row without one matches no other.

    priority: float32 [n]; of rows with the same file the one with the smallest value is kept, or the first such.
    """
    rows = _met_twice(dataset)
    hashes = _hashes(dataset, rows)
    order = np.lexsort((rows, priority[rows], hashes[:, 1], hashes[:, 0]))
    rows, hashes = rows[order], hashes[order]
    begins = np.ones(len(rows), bool)
    begins[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    later, of = rows[~begins], rows[first[~begins]]
    by_row = np.argsort(later)
    return SameContent(later[by_row], of[by_row])


def _met_twice(dataset: EmbeddingDataset) -> np.ndarray:
    """Rows that share the first 64 bits of their hash with another: takes 8 bytes per row and leaves few rows."""
    prefix = np.empty(len(dataset), np.uint64)
    known = np.empty(len(dataset), bool)
    for number, shard in enumerate(dataset.shards):
        column = dataset.metadata(number, ("sha256",))["sha256"]
        here = slice(shard.start, shard.stop)
        known[here] = pc.is_valid(column).to_numpy()
        prefix[here][known[here]] = _halves(dataset, column.drop_null(), 1)[:, 0]
    ordered = np.sort(prefix[known])
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.empty(0, np.int64)
    place = np.minimum(np.searchsorted(repeated, prefix), len(repeated) - 1)
    return np.flatnonzero(known & (repeated[place] == prefix))


def _hashes(dataset: EmbeddingDataset, rows: np.ndarray) -> np.ndarray:
    """The first 128 bits of the hashes of `rows` (ascending): uint64 [n, 2]."""
    out = np.empty((len(rows), 2), np.uint64)
    for number, shard in enumerate(dataset.shards):
        here = slice(*np.searchsorted(rows, (shard.start, shard.stop)))
        if here.stop > here.start:
            column = dataset.metadata(number, ("sha256",))["sha256"].take(pa.array(rows[here] - shard.start))
            out[here] = _halves(dataset, column, 2)
    return out


def _halves(dataset: EmbeddingDataset, hashes: pa.ChunkedArray, count: int) -> np.ndarray:
    """The first `count` times 64 bits of hex sha256: uint64 [n, count]."""
    try:
        if pc.any(pc.not_equal(pc.utf8_length(hashes), _SHA256_DIGITS)).as_py():
            raise ValueError
        digits = "".join(pc.utf8_slice_codeunits(hashes, 0, 16 * count).to_pylist())
        return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).reshape(-1, count)
    except ValueError as problem:
        raise DatasetError(
            f"{dataset.path}: column sha256 holds what is no sha256 in hex", "Run `embedpipe verify`"
        ) from problem
