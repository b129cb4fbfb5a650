"""Metadata of chosen rows, shard by shard, in the order asked for: never a whole column of a large data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..load import EmbeddingDataset

ROWS_AT_ONCE = 100_000


def gather(dataset: EmbeddingDataset, rows: np.ndarray, columns: tuple[str, ...]) -> pa.Table:
    """`columns` of the rows with these numbers, in their order."""
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


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in pieces that `gather` can hold."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
