"""Rows as torch data sets, for a DataLoader with workers: by number, or as a stream that workers and ranks share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..types import EmbeddingBatch
from .dataset import EmbeddingDataset
from .row_index import as_rows

Row = dict[str, Any]
_ROWS_AT_ONCE = 1024


class RowDataset(Dataset[Row]):
    """Map-style: `rows[i]` → {"row": int64, "image": [dim], "text": [dim], and a value for each metadata column}.

    rows: the numbers of the rows there are, None for all. columns: metadata. A DataLoader reads each batch at once.
    """

    def __init__(
        self, dataset: EmbeddingDataset, rows: Sequence[int] | np.ndarray | None = None, columns: Sequence[str] = ()
    ) -> None:
        self._dataset = dataset
        self._rows = None if rows is None else as_rows(rows, len(dataset))
        self._columns = tuple(columns)

    def __len__(self) -> int:
        return len(self._dataset) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Several at once: a DataLoader asks for those of a batch."""
        chosen = as_rows(list(indices), len(self))
        rows = chosen if self._rows is None else self._rows[chosen]
        return _split(_tensors(self._dataset, rows, self._columns))


class RowStream(IterableDataset[Row]):
    """Iterable: each row once, in order, shared among the workers of all ranks; the shares differ by a row at most.

    Yields the rows of a `RowDataset`; with a batch_size, batches of them ("image" is [n, dim]), for a DataLoader with
    batch_size=None. rank, world: of this process; by default as torch.distributed or torchrun says.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        rows: Sequence[int] | np.ndarray | None = None,
        columns: Sequence[str] = (),
        batch_size: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self._dataset = dataset
        self._rows = None if rows is None else as_rows(rows, len(dataset))
        self._columns = tuple(columns)
        self._batch_size = batch_size
        found_rank, found_world = _rank_and_world()
        self._rank = found_rank if rank is None else rank
        self._world = found_world if world is None else world

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches():
            if self._batch_size is None:
                yield from _split(batch)
            else:
                yield batch

    def _batches(self) -> Iterator[Row]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        total = len(self._dataset) if self._rows is None else len(self._rows)
        shares, share = self._world * workers, self._rank * workers + number
        start, stop = share * total // shares, (share + 1) * total // shares
        size = self._batch_size or _ROWS_AT_ONCE
        if self._rows is not None:
            for first in range(start, stop, size):
                yield _tensors(self._dataset, self._rows[first : min(first + size, stop)], self._columns)
            return
        for first, batch in zip(
            range(start, stop, size), self._dataset.batches(size, start=start, stop=stop), strict=True
        ):
            rows = np.arange(first, min(first + size, stop))
            yield _tensors(self._dataset, rows, self._columns, batch)


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _tensors(
    dataset: EmbeddingDataset, rows: np.ndarray, columns: tuple[str, ...], read: EmbeddingBatch | None = None
) -> Row:
    """Some rows, a tensor (or, of metadata, a list) for each name. read: their embeddings, where they were read."""
    found: Row = {"row": torch.from_numpy(rows.astype(np.int64))}
    for side in ("image", "text"):
        column = getattr(dataset, side)
        if column is not None:
            found[side] = torch.from_numpy(column[rows] if read is None else getattr(read, side))
    if columns:
        found |= dataset.metadata.take(rows, columns).to_pydict()
    return found


def _split(batch: Row) -> list[Row]:
    return [{name: values[i] for name, values in batch.items()} for i in range(len(batch["row"]))]
