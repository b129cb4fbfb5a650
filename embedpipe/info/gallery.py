"""Samples of an output for display: images with captions, and rejects with reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import files, manifest
from ..load import EmbeddingDataset
from ..load.images.source import Images, source_images
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..parquet_tables import read_table
from ..store.rejects import read_rejects

_EXAMPLES_OF_A_CLASS = 5
# Shards searched for examples; an error class without one among them has no example.
_SHARDS_WITH_REJECTS = 32
_SEED = 0


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One sample: its source, caption, similarity (or None) and encoded image."""

    shard: str
    key: str
    caption: str | None
    similarity: float | None
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class GalleryReject:
    """One rejected sample, or one url that failed. what: its key or its url."""

    shard: str
    what: str
    message: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """samples: by heading. rejects: some per error class."""

    samples: dict[str, tuple[GalleryItem, ...]] = field(default_factory=dict)
    rejects: dict[str, tuple[GalleryReject, ...]] = field(default_factory=dict)


def look_at(path: str, count: int = 12, images: Images = None) -> Gallery:
    """`count` samples each with the lowest and the highest similarity and at random, and examples of rejects.

    images: the current location of an embedding data set's image shards; None for the recorded one. Raises InputError
    if there is nothing at `images` or `path`, and DatasetError.
    """
    run = manifest.read_run(path)
    if run is None or run.format == EMBEDDINGS:
        dataset = EmbeddingDataset(path)
        rejects = _rejects(path, run, dataset.manifests) if run is not None else {}
        return Gallery(_of_dataset(dataset, count, images), rejects)
    entries = list(manifest.read_manifests(path, run.shard_digits))
    return Gallery({"at random": tuple(_of_shards(path, run, entries, 2 * count))}, _failures(path, run, entries))


def _of_dataset(dataset: EmbeddingDataset, count: int, images: Images) -> dict[str, tuple[GalleryItem, ...]]:
    if not len(dataset):
        return {}
    similarity = dataset.column("similarity").to_numpy().astype(np.float32)
    order = np.argsort(similarity, kind="stable")
    order = order[np.isfinite(similarity[order])]
    random = np.sort(np.random.default_rng(_SEED).choice(len(dataset), min(count, len(dataset)), replace=False))
    chosen = {"lowest similarity": order[:count], "highest similarity": order[::-1][:count], "at random": random}
    rows = {row: None for rows in chosen.values() for row in rows.tolist()}
    said = dict(zip(rows, dataset.rows(list(rows), ("src_shard", "key", "caption")), strict=True))
    pictures = source_images(dataset, [(str(row["src_shard"]), str(row["key"])) for row in said.values()], images)

    def shown(row: int) -> GalleryItem:
        shard, key, caption = (said[row][name] for name in ("src_shard", "key", "caption"))
        alike = float(similarity[row]) if np.isfinite(similarity[row]) else None
        return GalleryItem(str(shard), str(key), _optional(caption), alike, pictures.get((str(shard), str(key))))

    return {heading: tuple(map(shown, rows.tolist())) for heading, rows in chosen.items() if len(rows)}


def _optional(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _of_shards(path: str, run: RunCard, entries: Sequence[ShardManifest], count: int) -> Iterator[GalleryItem]:
    """Stored images from randomly chosen image shards, by their offset in the tar."""
    filled = [entry for entry in entries if entry.rows_out]
    rng = np.random.default_rng(_SEED)
    chosen = rng.permutation(len(filled))[:count].tolist()
    each = -(-count // max(1, len(chosen)))
    for place in sorted(chosen):
        name = manifest.shard_name(filled[place].number, run.shard_digits)
        columns = ["key", "caption", "status", "bytes", "offset"]
        rows = [row for row in _table(path, f"{name}.parquet", columns) if row["status"] == "success"]
        with files.reading(files.join(path, f"{name}.tar")) as stream:
            for row in (rows[i] for i in sorted(rng.choice(len(rows), min(each, len(rows)), replace=False))):
                stream.seek(row["offset"])
                yield GalleryItem(f"{name}.tar", row["key"], row["caption"], None, stream.read(row["bytes"]))


def _table(path: str, name: str, columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(files.join(path, name), columns).to_pylist()
    return rows


def _rejects(path: str, run: RunCard, entries: Sequence[ShardManifest]) -> dict[str, tuple[GalleryReject, ...]]:
    found: dict[str, list[GalleryReject]] = {}
    for entry in _with_rejects(entries):
        for row in read_rejects(path, entry, run.shard_digits).to_pylist():
            _add(found, row["error_class"], GalleryReject(row["src_shard"], row["key"], row["message"] or ""))
    return {name: tuple(some) for name, some in found.items()}


def _failures(path: str, run: RunCard, entries: Sequence[ShardManifest]) -> dict[str, tuple[GalleryReject, ...]]:
    found: dict[str, list[GalleryReject]] = {}
    for entry in _with_rejects(entries):
        name = manifest.shard_name(entry.number, run.shard_digits)
        for row in _table(path, f"{name}.parquet", ["url", "status", "error_class", "error_message"]):
            if row["status"] == "failed":
                _add(found, row["error_class"], GalleryReject(name, row["url"] or "", row["error_message"] or ""))
    return {name: tuple(some) for name, some in found.items()}


def _with_rejects(entries: Sequence[ShardManifest]) -> Sequence[ShardManifest]:
    """Some shards with rejects, covering every error class as far as possible."""
    wanted = {name for entry in entries for name in entry.rejects}
    chosen = []
    for entry in entries:
        if entry.rejects.keys() & wanted:
            chosen.append(entry)
            wanted -= {name for name, count in entry.rejects.items() if count >= _EXAMPLES_OF_A_CLASS}
    return chosen[:_SHARDS_WITH_REJECTS]


def _add(found: dict[str, list[GalleryReject]], name: str, example: GalleryReject) -> None:
    examples = found.setdefault(name, [])
    if len(examples) < _EXAMPLES_OF_A_CLASS:
        examples.append(example)
