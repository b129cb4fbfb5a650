"""Which cluster each row of a data set belongs to, and which other one it nearly belongs to."""

from __future__ import annotations

import numpy as np

from ..index.clusters import centroids, sample_size
from ..load import EmbeddingDataset
from .blocks import blocks, forget, unit

# Up to this many rows everything is compared with everything; beyond it clusters hold about a quarter as many.
_ONE_CLUSTER = 20_000
_ROWS_PER_CLUSTER = 5_000
_MOST_CLUSTERS = 50_000
# Of k-means' sample: memory that does not grow with the data.
_SAMPLE_BYTES = 1 << 28
# A row is compared in a second cluster if it is nearer to its own centroid by less than this over the root of the
# dimension: a copy moves a little in all directions, and across the border between two clusters by little of that.
BORDER = 0.4
# No more than this share of rows is compared twice, those nearest to a border: there are data with all rows near one.
MOST_TWICE = 0.25
_CENTERS_AT_ONCE = 2048

# cluster, other: the nearest and the second nearest, -1 if there is none. to_center: cosine to the nearest. gap: how
# much less that to the second nearest is.
ASSIGNED = np.dtype([("cluster", np.int32), ("other", np.int32), ("to_center", np.float32), ("gap", np.float32)])


def cluster_count(rows: int) -> int:
    """One cluster, which is exact, for small data sets; clusters of about 5,000 rows for larger ones."""
    return 1 if rows <= _ONE_CLUSTER else min(_MOST_CLUSTERS, -(-rows // _ROWS_PER_CLUSTER))


def centers_of(dataset: EmbeddingDataset, modality: str, seed: int) -> np.ndarray:
    """Unit-length centroids, float32 [clusters, dim]: of all rows where there is one cluster, else of a sample.

    The sample is drawn from all rows alike, whatever shard they are in.
    """
    clusters = cluster_count(len(dataset))
    if clusters == 1:
        total = np.zeros(dataset.card.dim)
        for shard in range(len(dataset.shards)):
            for _, rows in blocks(dataset, shard, modality):
                total += rows.sum(axis=0, dtype=np.float64)
        return unit(total[None].astype(np.float32))
    most = max(clusters, _SAMPLE_BYTES // (dataset.card.dim * 4))
    count = min(len(dataset), sample_size(clusters), most)
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), count, replace=False, shuffle=False))
    sample = np.empty((count, dataset.card.dim), np.float32)
    for number, place in enumerate(dataset.shards):
        here = slice(*np.searchsorted(chosen, (place.start, place.stop)))
        array = dataset.array(number, modality)
        sample[here] = array[chosen[here] - place.start]
        forget(array)
    return centroids(sample, clusters, seed)


def assign(dataset: EmbeddingDataset, shard: int, modality: str, centers: np.ndarray) -> np.ndarray:
    """The ASSIGNED of each row of the shard at that place in `dataset.shards`."""
    start = dataset.shards[shard].start
    out = np.empty(dataset.shards[shard].stop - start, ASSIGNED)
    for first, rows in blocks(dataset, shard, modality):
        number, cosine = _nearest_two(unit(rows), centers)
        part = out[first - start : first - start + len(rows)]
        part["cluster"], part["other"] = number[:, 0], number[:, 1]
        part["to_center"], part["gap"] = cosine[:, 0], cosine[:, 0] - cosine[:, 1]
    return out


def near_border(assigned: np.ndarray, dim: int) -> np.ndarray:
    """bool [n]: the rows that are to be compared in their second cluster, too."""
    width = np.float32(BORDER / np.sqrt(dim))
    most = int(MOST_TWICE * len(assigned))
    if (assigned["gap"] < width).sum() > most:
        width = np.partition(assigned["gap"], most)[most]
    return np.asarray(assigned["gap"] < width)


def _nearest_two(rows: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers int32 [n, 2] and cosines float32 [n, 2] of each row's two nearest centers; -1, -inf: none."""
    number = np.full((len(rows), 2), -1, np.int32)
    cosine = np.full((len(rows), 2), -np.inf, np.float32)
    every = np.arange(len(rows))
    for first in range(0, len(centers), _CENTERS_AT_ONCE):
        product = rows @ centers[first : first + _CENTERS_AT_ONCE].T
        for _ in range(2):
            best = product.argmax(axis=1)
            value = product[every, best]
            product[every, best] = -np.inf
            _take_if_nearer(number, cosine, (first + best).astype(np.int32), value)
    return number, cosine


def _take_if_nearer(number: np.ndarray, cosine: np.ndarray, found: np.ndarray, value: np.ndarray) -> None:
    nearest = value > cosine[:, 0]
    number[nearest, 1], cosine[nearest, 1] = number[nearest, 0], cosine[nearest, 0]
    number[nearest, 0], cosine[nearest, 0] = found[nearest], value[nearest]
    second = ~nearest & (value > cosine[:, 1])
    number[second, 1], cosine[second, 1] = found[second], value[second]
