"""Training and held-out rows: by a metadata column, or by a hash of what a row is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..errors import DatasetError, did_you_mean
from .dataset import EmbeddingDataset
from .identity import content_identities

TRAIN, VALID, TEST = "train", "valid", "test"
CONTENT, KEY = "content", "key"
"""What is hashed: a row's image (see `content_identities`), or its source shard and key, as runs before did."""


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
    return int.from_bytes(hashlib.sha256(identity.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def splits(
    dataset: EmbeddingDataset,
    column: str | None,
    valid_share: float = 0.05,
    test_share: float = 0.0,
    by: str = CONTENT,
) -> np.ndarray:
    """The split of each row: the value of `column`, or a hash. Array of str [n].

    by: what is hashed, CONTENT or KEY. By content, a row keeps its split when its data set is merged, filtered,
    deduplicated or grown, and rows of the same image have the same one.
    """
    if column is not None:
        return np.array([str(value) for value in dataset.column(column).to_pylist()], dtype=object)
    identities = content_identities(dataset) if by == CONTENT else _keys(dataset)
    return np.array([hash_split(identity, valid_share, test_share) for identity in identities], dtype=object)


def _keys(dataset: EmbeddingDataset) -> list[str]:
    shards, keys = dataset.column("src_shard").to_pylist(), dataset.keys()
    return [f"{shard}\0{key}" for shard, key in zip(shards, keys, strict=True)]


def rows_of_split(names: np.ndarray, wanted: str, where: str) -> np.ndarray:
    """The rows (int64, ascending) of the split `wanted`. Raises DatasetError if there are none."""
    rows = np.flatnonzero(names == wanted).astype(np.int64)
    if not rows.size:
        known: Sequence[str] = sorted(set(names.tolist()))
        raise DatasetError(f"{where}: no rows of the split {wanted!r}", did_you_mean(wanted, known))
    return rows
