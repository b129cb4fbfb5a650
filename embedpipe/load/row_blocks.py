"""Stored rows as float32: a shard block by block, or selected rows by number."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from .. import files
from ..errors import DatasetError
from .dataset import EmbeddingDataset

BLOCK_ROWS = 8192  # fixed: the rounding of a matrix product may depend on its shape


def row_blocks(dataset: EmbeddingDataset, shard: int, modality: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, float32 [m, dim]) for each block of the shard at that index in `dataset.shards`.

    Raises DatasetError naming the first row that is not finite. Mapped pages are released after use, so that reading a
    data set larger than memory does not fill it.
    """
    array = dataset.array(shard, modality)
    start = dataset.shards[shard].start
    for first in range(0, len(array), BLOCK_ROWS):
        rows = np.ascontiguousarray(array[first : first + BLOCK_ROWS], np.float32)
        # The sum of finite values is finite, apart from overflow: check single values only if it is not.
        if not np.isfinite(rows.sum()):
            _require_finite(dataset, modality, np.arange(start + first, start + first + len(rows)), rows)
        yield start + first, rows
    release_pages(array)


def take_rows(dataset: EmbeddingDataset, modality: str, rows: np.ndarray) -> np.ndarray:
    """float32 [n, dim] of the given rows of the data set, preferably in ascending order.

    Raises DatasetError naming the first row that is not finite.
    """
    found = dataset.require(modality)[rows].astype(np.float32)
    _require_finite(dataset, modality, rows, found)
    return found


def release_pages(array: object) -> None:
    """Release the pages of a memory-mapped array, or of its base; they are read again when accessed."""
    base: object = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def can_look_up(dataset: EmbeddingDataset) -> bool:
    """Whether random access to rows is cheap: memory-mapped, on this machine."""
    return files.is_local(dataset.path) and dataset.run.options.get("format", "npy") == "npy"


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """`rows` normalised again: float16 rows have norm 1 to three digits only, while duplicates need six."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    made: np.ndarray = rows / np.maximum(lengths, 1e-12)[:, None]
    return made


def _require_finite(dataset: EmbeddingDataset, modality: str, numbers: np.ndarray, rows: np.ndarray) -> None:
    """Raise DatasetError if a row is not finite; numbers: of the rows, in the data set."""
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
