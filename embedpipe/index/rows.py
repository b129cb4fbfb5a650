"""Stored rows as float32: block by block through a shard, or some of them by their number."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from .. import files
from ..errors import DatasetError
from ..load import EmbeddingDataset

BLOCK_ROWS = 8192  # fixed: numbers that a matrix product gives may depend on its shape


def blocks(dataset: EmbeddingDataset, shard: int, modality: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row in the shard, float32 [m, dim]) through the shard at that place in `dataset.shards`.

    Raises DatasetError when a value is not finite. What is mapped of the shard is given back behind it, so that reading
    a data set larger than memory does not fill it.
    """
    array = dataset.array(shard, modality)
    for start in range(0, len(array), BLOCK_ROWS):
        rows = np.ascontiguousarray(array[start : start + BLOCK_ROWS], np.float32)
        _require_finite(dataset, shard, modality, start, rows)
        yield start, rows
    release(dataset, modality, shard)


def take(dataset: EmbeddingDataset, modality: str, rows: np.ndarray) -> np.ndarray:
    """float32 [n, dim] of those rows of the data set, best asked for in ascending order.

    Raises DatasetError when a value is not finite.
    """
    found = dataset.require(modality)[rows].astype(np.float32)
    if not np.isfinite(found).all():
        bad = int(rows[np.flatnonzero(~np.isfinite(found).all(axis=1))[0]])
        shard = dataset.shard_of(bad)
        raise _nonfinite(dataset, shard, modality, bad - dataset.shards[shard].start)
    return found


def release(dataset: EmbeddingDataset, modality: str, shard: int) -> None:
    """Let go of the memory-mapped pages of a shard; they are read again when they are touched."""
    base: object = dataset.array(shard, modality)
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def can_look_up(dataset: EmbeddingDataset) -> bool:
    """Whether single rows can be read at once: memory-mapped, on this machine."""
    return files.is_local(dataset.path) and dataset.run.options.get("format", "npy") == "npy"


def _require_finite(dataset: EmbeddingDataset, shard: int, modality: str, start: int, rows: np.ndarray) -> None:
    if not np.isfinite(rows).all():
        raise _nonfinite(dataset, shard, modality, start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]))


def _nonfinite(dataset: EmbeddingDataset, shard: int, modality: str, place: int) -> DatasetError:
    number = dataset.shards[shard].manifest.number
    return DatasetError(
        f"{dataset.path}: shard {number}, row {place}: the {modality} embedding holds a NaN or an infinite value",
        f"Remove the shard's manifest in {dataset.path}/manifest and run `embedpipe encode` again",
    )
