"""Look up rows by key, in sixteen bytes of memory per row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import DatasetError
from .metadata import MetadataColumns

_REMEDY_TWICE = "Keys are unique within a source shard: say which one with src_shard="


def _hashes(keys: Iterable[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.uint64)


class KeyRows:
    """Finds rows by key. The keys are read once, on first use; only their hashes stay in memory."""

    def __init__(self, path: str, metadata: MetadataColumns, shards: int) -> None:
        self._path = path
        self._metadata = metadata
        self._shards = shards
        self._hash, self._row = np.empty(0, np.uint64), np.empty(0, np.int64)

    def find(self, keys: Sequence[str], src_shard: str | None = None) -> np.ndarray:
        """int64 [n]: the row of each key. Raises DatasetError for a missing or repeated key."""
        if not len(self._hash):
            self._index()
        wanted = _hashes(keys)
        low, high = (np.searchsorted(self._hash, wanted, side=side) for side in ("left", "right"))
        # Different keys may share a hash: read the keys of the found rows.
        candidates = np.unique(
            np.concatenate([self._row[a:b] for a, b in zip(low, high, strict=True)] or [self._row[:0]])
        )
        named = self._metadata.take(candidates, ("key", "src_shard")).to_pylist()
        rows: dict[str, list[int]] = {}
        for row, name in zip(candidates.tolist(), named, strict=True):
            if src_shard in (None, name["src_shard"]):
                rows.setdefault(name["key"], []).append(row)
        return np.array([self._only(key, rows.get(key, []), src_shard) for key in keys], np.int64)

    def _index(self) -> None:
        parts = [_hashes(self._metadata(shard, ("key",)).column(0).to_pylist()) for shard in range(self._shards)]
        hashes = np.concatenate(parts) if parts else self._hash
        self._row = np.argsort(hashes, kind="stable")
        self._hash = hashes[self._row]

    def _only(self, key: str, rows: list[int], src_shard: str | None) -> int:
        where = f" in the source shard {src_shard}" if src_shard is not None else ""
        if not rows:
            raise DatasetError(f"{self._path}: no row has the key {key!r}{where}", "Check the key")
        if len(rows) > 1:
            names = self._metadata.take(np.array(rows[:3]), ("src_shard",)).column(0).to_pylist()
            raise DatasetError(
                f"{self._path}: {len(rows)} rows have the key {key!r} ({', '.join(names)})", _REMEDY_TWICE
            )
        return rows[0]
