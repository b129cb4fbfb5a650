"""Which rows of an embedding data set repeat others: SemDeDup (Abbas et al., 2303.09540) on disk.

Rows are clustered, brought together by cluster in the order in which they are to be kept, and compared within their
cluster. What is found is each row's nearest predecessor, so one pass answers for every threshold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..index.clusters import centroids, nearest_centroid, sample_size
from ..load import EmbeddingDataset
from ..progress import Listener, Progress
from .nearest import nearest_before
from .scatter import ScratchRows

_ROWS_AT_ONCE = 16_384
# Up to this many rows everything is compared with everything; beyond it clusters hold about a quarter as many.
_ONE_CLUSTER = 20_000
_ROWS_PER_CLUSTER = 5_000
_MOST_CLUSTERS = 50_000

KEEP = {
    "first": "the one that comes first in the data set",
    "similarity": "the one whose image and caption agree best",
    "closest": "the one closest to the centre of its cluster",
    "farthest": "the one farthest from the centre of its cluster",
}


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each row of a data set: cosine to its nearest predecessor in keeping order (-1: none), and that row (-1).

    cosine float32 [n], row int64 [n]; clusters: how many there were.
    """

    cosine: np.ndarray
    row: np.ndarray
    clusters: int


def nearest_predecessors(
    dataset: EmbeddingDataset, modality: str, keep: str, seed: int, scratch: Path, listen: Listener
) -> Nearest:
    """Compare the rows of `dataset`. Uses a scratch file as large as the embeddings, and 40 bytes of memory a row."""
    count = len(dataset)
    listen(Progress(planned=2))
    clusters = cluster_count(count)
    centers = centroids(_sample(dataset, modality, clusters, seed), clusters, seed) if clusters > 1 else None
    cluster = np.zeros(count, np.int64)
    priority = np.zeros(count, np.float32)
    for start, rows in _blocks(dataset, modality):
        if centers is not None:
            cluster[start : start + len(rows)], to_center = nearest_centroid(rows, centers)
        else:
            to_center = rows @ _unit(rows.mean(axis=0)) if keep in ("closest", "farthest") else np.zeros(len(rows))
        priority[start : start + len(rows)] = {"closest": -to_center, "farthest": to_center}.get(keep, 0)
    if keep == "similarity":
        alike = dataset.column("similarity").to_numpy(zero_copy_only=False).astype(np.float32)
        priority = -np.nan_to_num(alike, nan=-1)
    listen(Progress(tasks=1))
    # By cluster, then by who is to be kept, then as in the data set.
    order = np.lexsort((np.arange(count), priority, cluster))
    places = np.empty(count, np.int64)
    places[order] = np.arange(count)
    bounds = np.searchsorted(cluster[order], np.arange(clusters + 1))
    cosine, row = np.full(count, -1, np.float32), np.full(count, -1, np.int64)
    with ScratchRows(scratch, dataset.card.dim, dataset.card.dtype) as stored:
        for start, rows in _blocks(dataset, modality):
            stored.write(rows, places[start : start + len(rows)])
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            found, place = nearest_before(functools.partial(_read_from, stored, first), last - first)
            members = order[first:last]
            cosine[members] = found
            row[members] = np.where(place < 0, -1, members[place])
            listen(Progress(rows=last - first))
    listen(Progress(tasks=1))
    return Nearest(cosine, row, clusters)


def _read_from(stored: ScratchRows, first: int, start: int, stop: int) -> np.ndarray:
    # Stored as float16, rows are of unit length to three digits only; duplicates should be told to six.
    rows = stored.read(first + start, first + stop)
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def cluster_count(rows: int) -> int:
    """One cluster, which is exact, for small data sets; clusters of about 5,000 rows for larger ones."""
    return 1 if rows <= _ONE_CLUSTER else min(_MOST_CLUSTERS, math.ceil(rows / _ROWS_PER_CLUSTER))


def _unit(vector: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


def _sample(dataset: EmbeddingDataset, modality: str, clusters: int, seed: int) -> np.ndarray:
    rows = np.sort(np.random.default_rng(seed).choice(len(dataset), min(len(dataset), sample_size(clusters)), False))
    sample: np.ndarray = dataset.require(modality)[rows].astype(np.float32)
    return sample


def _blocks(dataset: EmbeddingDataset, modality: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [m, dim]) through the whole data set."""
    for number, shard in enumerate(dataset.shards):
        array: Any = dataset.array(number, modality)
        for start in range(0, len(array), _ROWS_AT_ONCE):
            yield shard.start + start, np.asarray(array[start : start + _ROWS_AT_ONCE], np.float32)
