"""Join image shards with an embedding data set by (source shard, key).

Never by position: members and shards may be in another order than when they were encoded, and some may be gone. An
unchanged shard (same name, size and change mark) need not be read: the data set knows its contents. Others are read
once, and their contents are cached.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ... import files
from ...errors import DatasetError, InputError
from ...parquet_tables import read_table
from ...progress import Listener, Progress, silent
from ...read import Reader
from ...read.base import NoDigest
from ...types import Reject, Sample, SourceShard
from ..dataset import EmbeddingDataset

_FORMAT_VERSION = 1
_LISTED = pa.schema([("key", pa.string()), ("sha256", pa.string()), ("index", pa.int64())])


@dataclass(frozen=True, slots=True)
class JoinCounts:
    """Counts of joined and unmatched rows and images.

    joined: rows with their image. image_missing: without one, and of these shard_missing: their whole source shard is
    missing. image_changed: the image with their key differs from the encoded one. row_repeated: several rows have the
    same (source shard, key). These add up to `rows`. image_repeated: images left out because of an earlier one with the
    same key, as in `encode`. image_unused: images without a row, such as rejected or filtered samples. shard_unused:
    shards without rows.
    """

    rows: int
    joined: int = 0
    image_missing: int = 0
    shard_missing: int = 0
    image_changed: int = 0
    row_repeated: int = 0
    image_repeated: int = 0
    image_unused: int = 0
    shard_unused: int = 0


@dataclass(frozen=True, slots=True)
class JoinedShard:
    """Rows of one source shard that have their image, in the order of the images.

    rows: int64 [n], numbers in the data set. keys: the key of each. sha256: of the stored image, None if unknown.
    """

    shard: SourceShard
    rows: np.ndarray
    keys: tuple[str, ...]
    sha256: tuple[str | None, ...]

    def only(self, wanted: np.ndarray) -> JoinedShard:
        """Only the rows in `wanted` (ascending)."""
        kept = np.flatnonzero(np.isin(self.rows, wanted, assume_unique=True))
        return JoinedShard(
            self.shard,
            self.rows[kept],
            tuple(self.keys[place] for place in kept),
            tuple(self.sha256[place] for place in kept),
        )


@dataclass(frozen=True, slots=True)
class Join:
    """Image shards joined with a data set. shards: those with rows, in the order of the data set's."""

    reader: Reader
    shards: tuple[JoinedShard, ...]
    counts: JoinCounts

    @property
    def rows(self) -> np.ndarray:
        """int64, ascending: all rows with their image."""
        return np.sort(np.concatenate([shard.rows for shard in self.shards] or [np.empty(0, np.int64)]))

    def only(self, rows: np.ndarray) -> Join:
        """The same with only the rows `rows` (ascending)."""
        kept = (shard.only(rows) for shard in self.shards)
        return Join(self.reader, tuple(shard for shard in kept if len(shard.rows)), self.counts)


def join_images(
    dataset: EmbeddingDataset,
    reader: Reader,
    cache: str,
    data: str,
    listener: Listener = silent,
    *,
    drop: bool = False,
    keep: bool = True,
) -> Join:
    """Join the images of `reader` at `data` with the rows of `dataset`.

    cache: folder for the contents of shards. drop: leave out rows with a missing or changed image, or a repeated key;
    else they are refused. keep: write to the cache. Raises DatasetError with counts of such rows, InputError if there
    are no images.
    """
    there = {shard.name: shard for shard in reader.shards(dataset.run.plan)}
    planned = {shard.name: shard for shard in dataset.run.plan}
    made = [it.manifest for it in dataset.shards]
    listener(Progress(planned=len(made)))
    counts = dict.fromkeys((item.name for item in fields(JoinCounts)), 0)
    counts["rows"] = len(dataset)
    joined = []
    for place, entry in enumerate(made):
        rows = _rows_of(dataset, place)
        for name, some in rows.items():
            shard = there.get(name)
            if shard is None:
                counts["shard_missing"] += len(some)
                counts["image_missing"] += len(some)
                continue
            unchanged = planned.get(name) == shard and name == entry.source.name
            listed = _as_encoded(some) if unchanged else _listed(reader, shard, cache, keep)
            if unchanged:
                repeated, images = entry.rejects.get("duplicate_key", 0), entry.rows_in
            else:
                repeated, images = listed.repeated, len(listed.keys) + listed.repeated
            found, said = _join_shard(shard, some, listed)
            for what, count in said.items():
                counts[what] += count
            counts["image_repeated"] += repeated
            counts["image_unused"] += images - repeated - len(found.rows) - said["image_changed"]
            if len(found.rows):
                joined.append(found)
        listener(Progress(tasks=1, rows=sum(map(len, rows.values()))))
    counts["shard_unused"] = len(there.keys() - {it.shard.name for it in joined} - _names(dataset))
    join = Join(reader, tuple(joined), JoinCounts(**counts))
    _refuse(dataset.path, data, join.counts, drop)
    return join


@dataclass(frozen=True, slots=True)
class _Listed:
    """Keys of a shard, with the sha256 and position of each image. repeated: images with the key of an earlier one."""

    keys: list[str]
    sha256: list[str | None]
    index: list[int]
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the data set from one source shard."""

    rows: np.ndarray
    keys: list[str]
    sha256: list[str | None]
    index: list[int]

    def __len__(self) -> int:
        return len(self.rows)


def _rows_of(dataset: EmbeddingDataset, place: int) -> dict[str, _Rows]:
    """The rows of a shard of the data set by their recorded source shard: a single one, in the output of `encode`."""
    table = dataset.metadata(place, ("src_shard", "key", "sha256", "src_index"))
    names, keys, hashes, index = (table.column(i).to_pylist() for i in range(4))
    first = dataset.shards[place].start
    found = {}
    for name in dict.fromkeys(names):
        mine = [i for i, it in enumerate(names) if it == name]
        numbers = [index[i] if index[i] is not None else i for i in mine]
        found[name] = _Rows(
            np.array(mine, np.int64) + first, [keys[i] for i in mine], [hashes[i] for i in mine], numbers
        )
    return found


def _names(dataset: EmbeddingDataset) -> set[str]:
    return {it.manifest.source.name for it in dataset.shards} | {shard.name for shard in dataset.run.plan}


def _as_encoded(rows: _Rows) -> _Listed:
    """The contents of an unchanged shard, as far as it has rows."""
    return _Listed(rows.keys, rows.sha256, rows.index)


def _join_shard(shard: SourceShard, rows: _Rows, listed: _Listed) -> tuple[JoinedShard, dict[str, int]]:
    """The rows with their images, in the images' order, and counts of the others."""
    images = {key: (index, sha) for key, index, sha in zip(listed.keys, listed.index, listed.sha256, strict=True)}
    said = {"joined": 0, "image_missing": 0, "image_changed": 0, "row_repeated": 0}
    times: dict[str, int] = {}
    for key in rows.keys:
        times[key] = times.get(key, 0) + 1
    found = []
    for row, key, sha in zip(rows.rows.tolist(), rows.keys, rows.sha256, strict=True):
        if times[key] > 1:
            said["row_repeated"] += 1
        elif key not in images:
            said["image_missing"] += 1
        elif sha and images[key][1] and sha != images[key][1]:
            said["image_changed"] += 1
        else:
            said["joined"] += 1
            found.append((images[key][0], row, key, sha or images[key][1]))
    found.sort()
    joined = JoinedShard(
        shard,
        np.array([row for _, row, _, _ in found], np.int64),
        tuple(key for _, _, key, _ in found),
        tuple(sha for *_, sha in found),
    )
    return joined, said


def _listed(reader: Reader, shard: SourceShard, cache: str, keep: bool) -> _Listed:
    """The contents of a shard, from the cache or by reading it."""
    identity = json.dumps([_FORMAT_VERSION, repr(reader), shard.name, shard.bytes, shard.modified, shard.members])
    location = files.join(cache, f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.parquet")
    if files.exists(location):
        table = read_table(location)
        repeated = int((table.schema.metadata or {}).get(b"repeated", b"0"))
        keys, hashes, index = (table.column(name).to_pylist() for name in ("key", "sha256", "index"))
        return _Listed(keys, hashes, index, repeated)
    listed = _read(reader, shard)
    if not keep:
        return listed
    schema = _LISTED.with_metadata({"repeated": str(listed.repeated)})
    columns = {"key": listed.keys, "sha256": listed.sha256, "index": listed.index}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), stream)
    files.write_bytes(location, stream.getvalue())
    return listed


def _read(reader: Reader, shard: SourceShard) -> _Listed:
    keys: list[str] = []
    hashes: list[str | None] = []
    index: list[int] = []
    repeated = 0
    for sample in reader.read(shard, NoDigest()):
        if isinstance(sample, Sample) and sample.image is not None:
            keys.append(sample.key)
            hashes.append(hashlib.sha256(sample.image).hexdigest())
            index.append(sample.index)
        elif isinstance(sample, Reject):
            repeated += sample.error_class == "duplicate_key"
    return _Listed(keys, hashes, index, repeated)


def _refuse(emb: str, data: str, counts: JoinCounts, drop: bool) -> None:
    problems = (
        (counts.image_missing, f"have no image in {data}"),
        (counts.image_changed, "have another image there than was encoded"),
        (counts.row_repeated, "share their source shard and key with another row"),
    )
    said = ", ".join(f"{count:,} {what}" for count, what in problems if count)
    if counts.shard_missing:
        said += f" ({counts.shard_missing:,} of them are of source shards that are not there)"
    if not counts.joined:
        raise InputError(
            f"{emb}: not one of {counts.rows:,} rows has its image: {said}", "Give the shards it was made of"
        )
    if said and not drop:
        raise DatasetError(
            f"{emb}: of {counts.rows:,} rows {said}; {counts.joined:,} have their image",
            "Give the shards that were encoded, or `drop_unjoined=True` to leave those rows out",
        )
