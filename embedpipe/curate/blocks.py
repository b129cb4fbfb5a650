"""The rows of a data set, some thousand at a time."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import threadpoolctl

from ..errors import DatasetError
from ..load import EmbeddingDataset

ROWS_AT_ONCE = 8192


def blocks(dataset: EmbeddingDataset, shard: int, modality: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [m, dim]) through the shard at that place in `dataset.shards`.

    Raises DatasetError naming the first row whose embedding is not finite.
    """
    array: Any = dataset.array(shard, modality)
    start = dataset.shards[shard].start
    for first in range(0, len(array), ROWS_AT_ONCE):
        rows = np.asarray(array[first : first + ROWS_AT_ONCE], np.float32)
        # A sum is finite where all of its values are, or nearly: only where it is not does it pay to look closer.
        if not np.isfinite(rows.sum()):
            _refuse_nonfinite(dataset, shard, first, rows, modality)
        yield start + first, rows
    forget(array)


def forget(array: np.ndarray) -> None:
    """Give back the pages of a memory-mapped array: what was read once would count as this process's memory."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def _refuse_nonfinite(dataset: EmbeddingDataset, shard: int, first: int, rows: np.ndarray, modality: str) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        place = first + int(bad[0])
        entry = dataset.shards[shard].manifest
        row = dataset.shards[shard].start + place
        key = dataset.metadata(shard, ("key",))["key"][place].as_py()
        raise DatasetError(
            f"{dataset.path}: the {modality} embedding of row {row} ({entry.source.name} {key}) is not finite"
            + (f", nor are those of {len(bad) - 1} rows near it" if len(bad) > 1 else ""),
            f"Run `embedpipe verify`; remove manifest/{entry.number} of the data set and encode it again",
        )


def unit(rows: np.ndarray) -> np.ndarray:
    """`rows` at length 1: stored as float16 they are so to three digits only, and duplicates are told to six."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    made: np.ndarray = rows / np.maximum(lengths, 1e-12)[:, None]
    return made


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Within the block a product of matrices takes one thread, and so does k-means: threads are given out elsewhere.

    A library that shares out a product over threads adds up in another order for another number of them.
    """
    with threadpoolctl.threadpool_limits(1):
        yield
