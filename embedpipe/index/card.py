"""The index card: `index/image.json`, written last; it describes an index and names its file.

EMB/index/image.json                   IndexCard
EMB/index/image-<sha256, 12>.faiss     the index: any faiss of that version or newer reads it
EMB/index/image-<sha256, 12>.npz       queries and their true neighbours, to measure recall again when rows are added
EMB/index/image.building/              the progress of an unfinished build
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pydantic

from .. import files
from ..errors import DatasetError
from ..load import EmbeddingDataset
from ..manifest import ShardManifest

INDEX_FORMAT_VERSION = 2
_END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """A shard in an index: its number, its rows, and a hash of the checksums of its files."""

    number: int
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class IndexCard:
    """The contents of an index and its recall. Its ids are `shard number << 32 | row in the shard`.

    kind: faiss' name of the index type. chosen: whether `--type auto` chose it. file, bytes, sha256: of the index file
    beside the card; `ends` hashes its first and last 64 KiB, which is checked on every opening. nprobe: inverted lists
    probed, or ef_search: search width in a graph; None if not applicable. candidates: how many rows are fetched for ten
    results, and re-ranked by their stored embeddings; 0: no re-ranking. recall: recall@10 against exact search, by
    modality of the queries: image or text rows of the data. recall_queries: how many of each. trained_on: the number of
    training rows; rows_then: rows of the data set at that time.
    """

    modality: str
    kind: str
    chosen: bool
    metric: str
    rows: int
    dim: int
    fingerprint: str
    shards: tuple[IndexedShard, ...]
    file: str
    bytes: int
    sha256: str
    ends: str
    nprobe: int | None
    ef_search: int | None
    candidates: int
    recall: dict[str, float]
    recall_queries: int
    recall_target: float
    trained_on: int
    rows_then: int
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = INDEX_FORMAT_VERSION


_CARD: pydantic.TypeAdapter[IndexCard] = pydantic.TypeAdapter(IndexCard)


def folder_of(path: str) -> str:
    """The index folder of a data set."""
    return files.join(path, "index")


def card_path(path: str, modality: str) -> str:
    """`index/image.json` of a data set."""
    return files.join(folder_of(path), f"{modality}.json")


def index_path(path: str, card: IndexCard) -> str:
    """The index file of a card."""
    return files.join(folder_of(path), card.file)


def build_command(path: str, modality: str, rebuild: bool = False) -> str:
    """The remedy for most faults: to run `build_index`."""
    side = ", modality='text'" if modality == "text" else ""
    return f"Run `embedpipe.build_index({path!r}{side}{', rebuild=True' * rebuild})`"


def indexed_shard(manifest: ShardManifest) -> IndexedShard:
    """The record of a shard in an index."""
    digest = hashlib.sha256()
    for record in manifest.files:
        digest.update(f"{record.path}\0{record.sha256}\n".encode())
    return IndexedShard(manifest.number, manifest.rows_out, digest.hexdigest())


def indexed_shards(dataset: EmbeddingDataset) -> tuple[IndexedShard, ...]:
    """The records of all shards of `dataset` in a complete index."""
    return tuple(indexed_shard(shard.manifest) for shard in dataset.shards)


def data_digest(dataset: EmbeddingDataset) -> str:
    """Hex sha256 over the numbers and checksums of all shards, which identifies the data."""
    digest = hashlib.sha256()
    for shard in dataset.shards:
        for record in shard.manifest.files:
            digest.update(f"{shard.manifest.number}\0{record.path}\0{record.sha256}\n".encode())
    return digest.hexdigest()


def read_card(path: str, modality: str) -> IndexCard | None:
    """The card of a data set's index, or None if there is none. Raises DatasetError if it is invalid."""
    location = card_path(path, modality)
    if not files.exists(location):
        return None
    try:
        document: Any = json.loads(files.read_bytes(location))
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > INDEX_FORMAT_VERSION:
            raise DatasetError(
                f"{location}: format version {version}; this embedpipe reads {INDEX_FORMAT_VERSION}",
                "Upgrade embedpipe",
            )
        if isinstance(version, int) and version < INDEX_FORMAT_VERSION:
            return None  # an index can always be rebuilt: old ones are
        return _CARD.validate_python(document)
    except (ValueError, UnicodeDecodeError) as problem:  # includes pydantic's errors
        first = str(problem).splitlines()[0]
        raise DatasetError(f"{location}: damaged: {first}", f"Remove it. {build_command(path, modality)}") from problem


def write_card(path: str, card: IndexCard) -> None:
    """Write or replace a card atomically, which makes its index current."""
    document = dataclasses.asdict(card)
    files.write_bytes(card_path(path, card.modality), (json.dumps(document, indent=1) + "\n").encode())


def ends_digest(location: str, size: int) -> str:
    """Hex sha256 over the first and last 64 KiB of a file of that size: a cheap check for a torn or different file."""
    digest = hashlib.sha256(files.read_range(location, 0, _END_BYTES))
    digest.update(files.read_range(location, max(0, size - _END_BYTES), size))
    return digest.hexdigest()
