"""Indexes of seen urls and stored bytes, to find repeated rows; a repeated url is not downloaded again.

A row's location is its shard number and its position there. Locations only grow, so the first occurrence never changes.
Both indexes live on disk, beside unfinished parts; they are derived data and rebuilt when missing.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

_ROW_BITS = 32
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("at", "<u8")])
_PER_BUCKET = 2_000_000  # entries sorted in memory at once: 48 MB, and as much again for sorting
_CHUNK = 500_000

Place = tuple[int, int]


def _packed(shard: int, row: int) -> int:
    return shard << _ROW_BITS | row


def _unpacked(at: int) -> Place:
    return at >> _ROW_BITS, at & ((1 << _ROW_BITS) - 1)


class RepeatedUrls:
    """Rows that repeat an earlier row's url: a sorted, memory-mapped file of pairs (location, first location)."""

    def __init__(self, file: Path) -> None:
        self.pairs = np.load(file, mmap_mode="r" if file.stat().st_size > 128 else None)

    def of(self, shard: int) -> dict[int, Place]:
        """For the repeated rows of a shard, the location of the first row with their url."""
        first, last = np.searchsorted(self.pairs[:, 0], [_packed(shard, 0), _packed(shard + 1, 0)])
        return {_unpacked(int(at))[1]: _unpacked(int(begun)) for at, begun in self.pairs[first:last]}


def index_urls(urls: Iterable[tuple[Place, str]], rows: int, file: Path) -> None:
    """Find the repeats among about `rows` urls and write them to `file`.

    Memory is bounded except for 16 bytes per repeat: entries are hashed to buckets on disk, each sorted separately.
    """
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="urls-") as folder:
        buckets = [Path(folder) / f"{i}" for i in range(rows // _PER_BUCKET + 1)]
        for chunk in _chunks(urls):
            owners = chunk["high"] % np.uint64(len(buckets))
            for i in np.unique(owners):
                with buckets[int(i)].open("ab") as stream:
                    stream.write(chunk[owners == i].tobytes())
        found = [_repeats(np.fromfile(bucket, _ENTRY)) for bucket in buckets if bucket.exists()]
        pairs = np.concatenate(found) if found else np.zeros((0, 2), np.uint64)
        whole = Path(folder) / "pairs.npy"
        np.save(whole, pairs[np.argsort(pairs[:, 0])])
        whole.replace(file)


def _chunks(urls: Iterable[tuple[Place, str]]) -> Iterator[np.ndarray]:
    chunk: list[tuple[int, int, int]] = []
    for place, url in urls:
        digest = hashlib.blake2b(url.encode(), digest_size=16).digest()
        chunk.append((int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"), _packed(*place)))
        if len(chunk) == _CHUNK:
            yield np.array(chunk, _ENTRY)
            chunk = []
    if chunk:
        yield np.array(chunk, _ENTRY)


def _repeats(entries: np.ndarray) -> np.ndarray:
    """Pairs (location, location of the first) of the entries after the first with the same hash."""
    entries = entries[np.lexsort((entries["at"], entries["low"], entries["high"]))]
    again = np.zeros(len(entries), bool)
    again[1:] = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(entries))))
    return np.stack([entries["at"][again], entries["at"][first[again]]], axis=1)


class StoredContents:
    """Stored contents and their first location: an sqlite table of sha256 → location, shard by shard."""

    def __init__(self, file: Path) -> None:
        self.table = sqlite3.connect(file)
        self.table.execute("CREATE TABLE IF NOT EXISTS seen (sha256 BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID")
        self.table.execute("CREATE TABLE IF NOT EXISTS shards (number INTEGER PRIMARY KEY)")

    def close(self) -> None:
        """Close the file."""
        self.table.close()

    def known(self) -> set[int]:
        """The shards in the index."""
        return {number for (number,) in self.table.execute("SELECT number FROM shards")}

    def forget(self, shard: int) -> None:
        """Remove a shard, which is fetched again."""
        with self.table:
            self.table.execute("DELETE FROM seen WHERE at >= ? AND at < ?", (_packed(shard, 0), _packed(shard + 1, 0)))
            self.table.execute("DELETE FROM shards WHERE number = ?", (shard,))

    def add(self, shard: int, stored: Iterable[tuple[int, str]]) -> None:
        """Add a committed shard: (row, sha256) of its images."""
        entries = [(bytes.fromhex(sha256), _packed(shard, row)) for row, sha256 in stored]
        with self.table:
            self.table.executemany(
                "INSERT INTO seen VALUES (?, ?) ON CONFLICT (sha256) DO UPDATE SET at = min(at, excluded.at)", entries
            )
            self.table.execute("INSERT OR REPLACE INTO shards VALUES (?)", (shard,))

    def before(self, shard: int, sha256: str) -> Place | None:
        """The location of the same bytes in an earlier shard, if any."""
        question = "SELECT at FROM seen WHERE sha256 = ? AND at < ?"
        found = self.table.execute(question, (bytes.fromhex(sha256), _packed(shard, 0))).fetchone()
        return _unpacked(found[0]) if found else None
