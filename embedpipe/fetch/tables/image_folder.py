"""A folder of images, with captions (.txt) and fields (.json) beside them, as rows. Files are grouped as in `read`."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import fsspec
import pyarrow as pa

from ... import files
from ... import shard_plan as growth
from ...columns import storable
from ...errors import InputError, RunMismatch
from ...manifest import RunCard
from ...read.folder import FolderReader
from ...read.grouping import IMAGE_EXTENSIONS, SampleRules, Split, printable, readable, samples, split_at_last_dot
from ...types import Sample, SourceShard
from .schema import REFUSED_CLASS, REFUSED_MESSAGE, Layout

# .txt and .json may be captions, so they are ignored here.
_SURE_TABLES = ("parquet", "csv", "tsv", "jsonl")
_RULES = SampleRules(need_caption=False)
LAYOUT = Layout(
    "url", "caption", pa.schema([("url", pa.string()), ("caption", pa.string()), ("metadata", pa.string())])
)


def holds_images(location: str) -> bool:
    """Whether `location` is a folder of images, not of url tables. Raises InputError if ambiguous."""
    if not files.is_folder(location):
        return False
    names = [name.lower().removesuffix(".gz") for name in files.names(location) if name[0] not in "._"]
    tables = [name for name in names if name.endswith(tuple(f".{ending}" for ending in _SURE_TABLES))]
    if tables and any(map(_is_image, names)):
        raise InputError(
            f"{location}: contains both images and {tables[0]}",
            "Give `source='images'` or `source='table'`",
        )
    return not tables and _any_image(location)


def _any_image(location: str) -> bool:
    fs, root = fsspec.core.url_to_fs(location)
    return any(_is_image(name) for _, _, names in fs.walk(root) for name in names)


def _is_image(name: str) -> bool:
    place = split_at_last_dot(name)
    return place is not None and place[1] in IMAGE_EXTENSIONS


def plan_folder(location: str, out: str, samples_per_shard: int, previous: RunCard | None) -> list[SourceShard]:
    """The shards of a folder: those of the run so far, followed by new shards for new files.

    Raises RunMismatch if files of planned shards are changed or missing.
    """
    known = [shard for shard in previous.plan if shard.members] if previous is not None else []
    found = FolderReader(location, _RULES, samples_per_shard).shards(known)
    change = growth.grow_plan(known, found)
    for number in (*change.changed, *change.vanished):
        first, last = known[number].members[0], known[number].members[-1]
        raise RunMismatch(
            f"{out}: {location} changed since the run began: among the files from {first} to {last}, some are new,"
            " gone or of another date or size",
            "Put new images (with new names) beside the old ones, or give another output folder",
        )
    return list(change.shards)


def row_count(shard: SourceShard) -> int:
    """The number of rows in a shard of a folder: one per stem."""
    return sum(1 for _ in groupby(shard.members, _stem))


def _stem(path: str) -> str:
    place = split_at_last_dot(path)
    return place[0] if place is not None else path


class _Beside:
    """The files of one sample. For an image, the path instead of the bytes, which the workers read."""

    def __init__(self, folder: str, paths: list[str]) -> None:
        self.folder = folder
        self.paths = paths
        self.torn: str | None = None
        self.split: Split = split_at_last_dot

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        for path in self.paths:
            if _is_image(path):
                yield path, path.encode("utf-8", "surrogateescape")
            else:
                data = files.read_bytes(files.join(self.folder, path))
                yield path, data if readable(path, len(data)) else None


def folder_rows(location: str, shard: SourceShard) -> pa.Table:
    """The rows of a shard: relative paths as urls, and a refusal if the caption or the fields are damaged."""
    schema = LAYOUT.for_folder().schema
    found = [_row(location, list(paths)) for _, paths in groupby(shard.members, _stem)]
    return pa.Table.from_pylist(found, schema=schema)


def _row(location: str, paths: list[str]) -> dict[str, str | None]:
    image = next((path for path in paths if _is_image(path)), None)
    url = printable(image if image is not None else paths[0])
    beside = _Beside(location, paths)
    captioned = image is not None and any(path.lower().endswith(".txt") for path in paths)
    sample = next(samples(beside, replace(_RULES, need_caption=captioned)))
    if not isinstance(sample, Sample) and sample.error_class == "caption_missing":
        sample = next(samples(beside, _RULES))  # an empty .txt means no caption, and is not an error
    if not isinstance(sample, Sample):
        refused = "no_image" if sample.error_class == "image_missing" else "sidecar"
        return {"url": url, REFUSED_CLASS: refused, REFUSED_MESSAGE: f"{posixpath.basename(url)}: {sample.message}"}
    caption = sample.caption
    if caption is None and isinstance(sample.metadata.get(_RULES.caption_key), str):
        caption = storable(sample.metadata[_RULES.caption_key])
    fields = json.dumps(sample.metadata, sort_keys=True) if sample.metadata else None
    return {"url": url, "caption": caption, "metadata": fields}
