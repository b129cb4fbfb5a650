"""Exact (brute-force) nearest neighbours: the ground truth for recall, and search without an index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..load import EmbeddingDataset
from ..load.row_blocks import row_blocks
from ..progress import Listener, Progress, silent
from .ids import NONE, ids_of


@dataclass(frozen=True, slots=True)
class NearestRows:
    """The best rows of each query, best first: cosines float32 [q, k] and ids int64 [q, k].

    Equal scores are in the order of ids. With fewer than k rows, padded with -inf and -1.
    """

    scores: np.ndarray
    ids: np.ndarray

    @staticmethod
    def none(queries: int) -> NearestRows:
        """An empty result."""
        return NearestRows(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))

    def best(self, k: int) -> NearestRows:
        """The best k of each query, in order."""
        scores = np.where(self.ids == NONE, np.float32(-np.inf), self.scores)
        order = np.lexsort((self.ids, -scores), axis=1)[:, :k]
        return NearestRows(np.take_along_axis(scores, order, 1), np.take_along_axis(self.ids, order, 1))

    def beside(self, other: NearestRows) -> NearestRows:
        """Both concatenated, unsorted."""
        return NearestRows(np.hstack((self.scores, other.scores)), np.hstack((self.ids, other.ids)))


def exact_nearest(
    dataset: EmbeddingDataset,
    modality: str,
    queries: np.ndarray,
    k: int,
    shards: Iterable[int] | None = None,
    listen: Listener = silent,
) -> NearestRows:
    """The `k` best rows for float32 queries [q, dim], of all shards or of those at the indices `shards`.

    float32 inner products of the stored rows. Uses memory for one block of rows and one [q, k] result.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    found = NearestRows.none(len(queries))
    for shard in range(len(dataset.shards)) if shards is None else shards:
        opened = dataset.shards[shard]
        number = opened.manifest.number
        for row, rows in row_blocks(dataset, shard, modality):
            start = row - opened.start
            found = _with_block(found, queries @ rows.T, ids_of(number, start, start + len(rows)), k)
            listen(Progress(rows=len(rows)))
    return found


def _with_block(found: NearestRows, scores: np.ndarray, ids: np.ndarray, k: int) -> NearestRows:
    """Merge the best `k` so far with a block's scores [q, m]. Once there are k, few of a block qualify."""
    if found.ids.shape[1] < k:
        return found.beside(NearestRows(scores, np.broadcast_to(ids, scores.shape))).best(k)
    better = scores > found.scores[:, -1:]  # equal scores have higher ids, unless shards are read out of order
    counts = better.sum(axis=1)
    if not counts.any():
        return found
    new = NearestRows(
        np.full((len(scores), counts.max()), -np.inf, np.float32), np.full((len(scores), counts.max()), NONE, np.int64)
    )
    query, place = np.nonzero(better)
    column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    new.scores[query, column], new.ids[query, column] = scores[query, place], ids[place]
    return found.beside(new).best(k)
