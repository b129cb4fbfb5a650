"""Stable row ids: shard number and position in the shard, packed into one int64.

Row numbers of a data set count from its first shard, so they shift when an earlier shard is added or rebuilt. An index
stores ids instead, which are translated to the data set's current row numbers at search time.
"""

from __future__ import annotations

import numpy as np

from ..load import EmbeddingDataset

_PLACE_BITS = 32
NONE = -1  # the id, and the row, of a missing result


def ids_of(number: int, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the ids of rows [start, stop) of the shard of that number."""
    ids: np.ndarray = (np.int64(number) << _PLACE_BITS) | np.arange(start, stop, dtype=np.int64)
    return ids


def shard_numbers(ids: np.ndarray) -> np.ndarray:
    """The shard number in each id."""
    numbers: np.ndarray = np.right_shift(ids, _PLACE_BITS)
    return numbers


def rows_of_ids(dataset: EmbeddingDataset, ids: np.ndarray) -> np.ndarray:
    """int64 like `ids`: row numbers of the data set; -1 for ids not in it."""
    if not dataset.shards:
        return np.full(ids.shape, NONE, np.int64)
    numbers = np.array([shard.manifest.number for shard in dataset.shards], np.int64)
    starts = np.array([shard.start for shard in dataset.shards], np.int64)
    place = ids & ((1 << _PLACE_BITS) - 1)
    shard = np.minimum(np.searchsorted(numbers, shard_numbers(ids)), len(numbers) - 1)
    there = (numbers[shard] == shard_numbers(ids)) & (place < dataset.stops[shard] - starts[shard])
    return np.where(there & (ids >= 0), starts[shard] + place, NONE)


def ids_of_rows(dataset: EmbeddingDataset, rows: np.ndarray) -> np.ndarray:
    """int64 like `rows`: the ids of those rows of the data set."""
    numbers = np.array([shard.manifest.number for shard in dataset.shards], np.int64)
    starts = np.array([shard.start for shard in dataset.shards], np.int64)
    shard = np.searchsorted(dataset.stops, rows, side="right")
    return (numbers[shard] << _PLACE_BITS) | (rows - starts[shard])
