"""Create an empty index of a given type, trained on a sample of a data set's rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..load import EmbeddingDataset
from ..load.row_blocks import release_pages, take_rows
from .index_types import ID_BYTES, ROWS_PER_CENTROID, IndexType
from .inverted_lists import code_bytes, require_lists
from .library import faiss

_ITERATIONS = 8
_SEED = 0


def new_index(kind: IndexType, dim: int) -> faiss.Index:
    """An untrained index of that type. Raises InputError if the type does not exist, or cannot be stored on disk."""
    try:
        index = faiss.index_factory(dim, kind.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as problem:
        said = str(problem).rpartition("Error: ")[2].strip()
        raise InputError(
            f"`kind={kind.factory!r}`: faiss does not know it, or not for {dim} values: {said}"
        ) from problem
    if kind.lists:
        require_lists(index, kind.factory)
        ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
        ivf.cp.niter = _ITERATIONS
        ivf.cp.seed = _SEED
        ivf.cp.min_points_per_centroid = 1  # or faiss warns on stderr
        ivf.cp.max_points_per_centroid = ROWS_PER_CENTROID
        if hasattr(ivf, "pq"):
            ivf.pq.cp.min_points_per_centroid = 1
            ivf.do_polysemous_training = (
                False  # for a filter that is not used here; it would dominate the training time
            )
    return index


def tried(kind: IndexType, dim: int) -> IndexType:
    """The same type with its bytes per row. Raises as `new_index` does, before hours of work are lost."""
    index = new_index(kind, dim)
    return replace(kind, row_bytes=code_bytes(index) + ID_BYTES) if kind.lists else kind


def trained_index(kind: IndexType, dataset: EmbeddingDataset, modality: str) -> faiss.Index:
    """An empty index, trained on `kind.training_rows` rows spread over the data set."""
    index = new_index(kind, dataset.card.dim)
    if not index.is_trained:
        index.train(training_sample(dataset, modality, kind.training_rows))
    return index


def training_sample(dataset: EmbeddingDataset, modality: str, count: int) -> np.ndarray:
    """float32 [count, dim]: uniformly sampled rows, always the same ones."""
    rows = np.random.default_rng(_SEED).choice(len(dataset), min(count, len(dataset)), replace=False)
    rows.sort()
    owner = np.searchsorted(dataset.stops, rows, side="right")
    parts = []
    for shard in np.unique(owner).tolist():
        parts.append(take_rows(dataset, modality, rows[owner == shard]))
        release_pages(dataset.array(shard, modality))  # scattered rows map nearly all pages
    return np.concatenate(parts)
