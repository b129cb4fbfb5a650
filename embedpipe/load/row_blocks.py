"""Stored rows as float32: a shard block by block, or selected rows by number."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from .. import files
from ..errors import DatasetError
from .dataset import EmbeddingDataset

BLOCK_ROWS = 8192  # fixed: numbers that a matrix product gives may depend on its shape


def blocks(dataset: EmbeddingDataset, shard: int, modality: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, float32 [m, dim]) through the shard at that place in `dataset.shards`.

    Raises DatasetError naming the first row that is not finite. What is mapped of the shard is given back behind it, so
    that reading a data set larger than memory does not fill it.
    """
    array = dataset.array(shard, modality)
    start = dataset.shards[shard].start
    for first in range(0, len(array), BLOCK_ROWS):
        rows = np.ascontiguousarray(array[first : first + BLOCK_ROWS], np.float32)
        # A sum is finite where all of its values are, or nearly: only where it is not does it pay to look closer.
        if not np.isfinite(rows.sum()):
            _require_finite(dataset, modality, np.arange(start + first, start + first + len(rows)), rows)
        yield start + first, rows
    release(array)


def take(dataset: EmbeddingDataset, modality: str, rows: np.ndarray) -> np.ndarray:
    """float32 [n, dim] of those rows of the data set, best in ascending order.

    Raises DatasetError naming the first row that is not finite.
    """
    found = dataset.require(modality)[rows].astype(np.float32)
    _require_finite(dataset, modality, rows, found)
    return found


def release(array: object) -> None:
    """Give back the pages of a memory-mapped array, or of what it is a view of; they are read again when touched."""
    base: object = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def can_look_up(dataset: EmbeddingDataset) -> bool:
    """Whether single rows can be read at once: memory-mapped, on this machine."""
    return files.is_local(dataset.path) and dataset.run.options.get("format", "npy") == "npy"


def unit(rows: np.ndarray) -> np.ndarray:
    """`rows` at length 1: stored as float16 they are so to three digits only, and duplicates are told to six."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    made: np.ndarray = rows / np.maximum(lengths, 1e-12)[:, None]
    return made


def _require_finite(dataset: EmbeddingDataset, modality: str, numbers: np.ndarray, rows: np.ndarray) -> None:
    """Raise DatasetError where a row is not finite; numbers: of the rows, in the data set."""
    bad = numbers[~np.isfinite(rows).all(axis=1)]
    if len(bad):
        row = int(bad[0])
        shard = dataset.shard_of(row)
        entry = dataset.shards[shard]
        key = dataset.metadata(shard, ("key",))["key"][row - entry.start].as_py()
        raise DatasetError(
            f"{dataset.path}: the {modality} embedding of row {row} ({entry.manifest.source.name} {key}) is not finite"
            + (f", nor are those of {len(bad) - 1} rows near it" if len(bad) > 1 else ""),
            f"Run `embedpipe verify`; remove manifest/{entry.manifest.number} of the data set and encode it again",
        )
