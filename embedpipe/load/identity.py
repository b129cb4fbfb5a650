"""What a row is, whatever is merged, filtered or added around it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from .dataset import EmbeddingDataset
from .images.parts import original_name

_COLUMNS = ("sha256", "src_shard", "key")


def content_identities(dataset: EmbeddingDataset) -> list[str]:
    """For each row the sha256 of its image; else its uid; else its source shard before any merge, and its key.

    Rows of the same image file have the same identity, whatever their captions and keys. See `content_identity`.
    """
    return [identity for table in _tables(dataset) for identity in identities_in(dataset, table)]


def identities_in(dataset: EmbeddingDataset, table: pa.Table) -> list[str]:
    """The content identities of some rows, from their metadata: sha256, src_shard, key and, if there is one, uid."""
    original = _original_names(dataset)
    return [content_identity(sha256, uid, original(shard), key) for sha256, uid, shard, key in _rows(table)]


def content_identity(sha256: str | None, uid: str | None, shard: str, key: str) -> str:
    """The identity of a sample, from what is known of it. shard: its source shard before any merge."""
    return sha256 or uid or f"{shard}\0{key}"


def row_marks(dataset: EmbeddingDataset, rows: np.ndarray | None = None) -> np.ndarray:
    """uint64: a hash of each of `rows` (all if None) by image, caption's uid, source shard before any merge, and key.

    Unlike content identities, they tell rows of the same image apart.
    """
    original = _original_names(dataset)
    marks = marks_of(
        (sha256, uid, original(shard), key) for table in _tables(dataset) for sha256, uid, shard, key in _rows(table)
    )
    return marks if rows is None else marks[rows]


def marks_of(rows: Iterable[tuple[str | None, str | None, str, str]]) -> np.ndarray:
    """uint64 [n]: the marks of rows given by sha256, uid, source shard before any merge, and key."""
    return _hashes("\0".join((sha256 or "", uid or "", shard, key)) for sha256, uid, shard, key in rows)


def _original_names(dataset: EmbeddingDataset) -> functools._lru_cache_wrapper[str]:
    """The name of a source shard before any merge, looked up once for each."""
    return functools.lru_cache(maxsize=None)(functools.partial(original_name, dataset.run))


def _tables(dataset: EmbeddingDataset) -> Iterator[pa.Table]:
    columns = (*_COLUMNS, *(("uid",) if "uid" in dataset.column_names() else ()))
    return (dataset.metadata(number, columns) for number in range(len(dataset.shards)))


def _rows(table: pa.Table) -> Iterator[tuple[str | None, str | None, str, str]]:
    """sha256, uid, src_shard and key of each row."""
    sha256, shard, key = (table[name].to_pylist() for name in _COLUMNS)
    uid: list[str | None] = [None] * len(key)
    if "uid" in table.column_names:
        uid = [None if it is None else str(it) for it in table["uid"].to_pylist()]
    return zip(sha256, uid, shard, key, strict=True)


def _hashes(texts: Iterable[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(it.encode(errors="surrogateescape"), digest_size=8).digest() for it in texts)
    return np.frombuffer(digests, np.uint64)
