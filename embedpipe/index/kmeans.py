"""k-means over embeddings."""

from __future__ import annotations

import numpy as np

from .library import faiss

_ITERATIONS = 12
_SAMPLES_PER_CLUSTER = 64  # a centroid is a mean: more would not improve it


def sample_size(clusters: int) -> int:
    """The number of training rows for `centroids`."""
    return clusters * _SAMPLES_PER_CLUSTER


def centroids(sample: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Unit-length centroids, float32 [clusters, dim], of spherical k-means over `sample` (float32 [n, dim])."""
    kmeans = faiss.Kmeans(
        sample.shape[1],
        clusters,
        niter=_ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=_SAMPLES_PER_CLUSTER,
    )
    kmeans.train(np.ascontiguousarray(sample, np.float32))
    return np.asarray(kmeans.centroids, np.float32)
