"""Training and held-out rows: by a metadata column, or by a hash of the key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..errors import DatasetError, did_you_mean
from .dataset import EmbeddingDataset

TRAIN, VALID, TEST = "train", "valid", "test"


def hash_split(identity: str, valid_share: float, test_share: float = 0.0) -> str:
    """Assign `valid` and `test` to a share of all identities each, else `train`: by the identity alone.

    So a row keeps its split as others are added; a larger `test_share` only moves rows from train to test.
    """
    place = hash_place(identity)
    if place < valid_share:
        return VALID
    return TEST if place < valid_share + test_share else TRAIN


def hash_place(identity: str) -> float:
    """A uniform hash of an identity in [0, 1)."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64


def splits(
    dataset: EmbeddingDataset, column: str | None, valid_share: float = 0.05, test_share: float = 0.0
) -> np.ndarray:
    """The split of each row: the value of `column`, or a hash of (source shard, key). Array of str [n]."""
    if column is not None:
        return np.array([str(value) for value in dataset.column(column).to_pylist()], dtype=object)
    shards, keys = dataset.column("src_shard").to_pylist(), dataset.keys()
    names = [hash_split(f"{shard}\0{key}", valid_share, test_share) for shard, key in zip(shards, keys, strict=True)]
    return np.array(names, dtype=object)


def rows_of_split(names: np.ndarray, wanted: str, where: str) -> np.ndarray:
    """The rows (int64, ascending) of the split `wanted`. Raises DatasetError if there are none."""
    rows = np.flatnonzero(names == wanted).astype(np.int64)
    if not rows.size:
        known: Sequence[str] = sorted(set(names.tolist()))
        raise DatasetError(f"{where}: no rows of the split {wanted!r}", did_you_mean(wanted, known))
    return rows
