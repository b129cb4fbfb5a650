"""Re-rank candidates by exact cosine, with the embeddings stored in the data set.

The index then needs only enough of each row to make it a candidate; order and scores are exact.
"""

from __future__ import annotations

import numpy as np

from ..load import EmbeddingDataset
from ..load.row_blocks import take_rows
from .exact import NearestRows
from .ids import NONE, rows_of_ids

_BYTES_AT_ONCE = 1 << 26


def rerank(dataset: EmbeddingDataset, modality: str, queries: np.ndarray, found: NearestRows) -> NearestRows:
    """Re-rank `found` by exact cosine; ids not in the data set become -1, at the end."""
    scores = exact_scores(dataset, modality, queries, found.ids)
    return NearestRows(scores, np.where(np.isinf(scores), NONE, found.ids)).best(found.ids.shape[1])


def exact_scores(dataset: EmbeddingDataset, modality: str, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """float32 like `ids` [q, n]: inner products of each query and those rows; -inf for ids not in the data set."""
    scores = np.full(ids.shape, -np.inf, np.float32)
    at_once = max(1, _BYTES_AT_ONCE // max(1, ids.shape[1] * dataset.card.dim * 4))
    for start in range(0, len(ids), at_once):
        block = slice(start, start + at_once)
        rows = rows_of_ids(dataset, ids[block])
        there = rows != NONE
        wanted, back = np.unique(rows[there], return_inverse=True)
        stored = take_rows(dataset, modality, wanted)
        stops = np.cumsum(there.sum(axis=1))
        for query, mine, stop in zip(range(start, start + len(rows)), there, stops, strict=True):
            scores[query][mine] = stored[back[stop - mine.sum() : stop]] @ queries[query]
    return scores
