"""The outputs that rows are taken from, each as shards of identified rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from .. import files, manifest
from ..consent import gave_source
from ..curate.selection import REPORT
from ..errors import DatasetError, InputError
from ..load.images.parts import SourcePart, parts_of
from ..manifest import EMBEDDINGS, EXPORT, IMAGE_SHARDS, RunCard, ShardManifest
from ..parquet_tables import read_table
from ..store import open_format
from ..store.rejects import read_rejects
from ..subset import KEPT
from ..taken_down import RewrittenTar, TakedownRecord, changes_between, key_digest, read_records, url_digest

KINDS = {EMBEDDINGS: "embedding data set", IMAGE_SHARDS: "image shards", "selection": "selection"}
_IMAGE_COLUMNS = ("uid", "url", "key", "status", "error_class", "duplicate_of", "retry_of", "sha256")
_ROW_COLUMNS = ("key", "src_shard", "src_index", "url", "sha256")


@dataclass(frozen=True, slots=True)
class IdentifiedRow:
    """One row of a shard. place: in its table. source, key: its input shard and key there. relations: keys of rows
    that it repeats. position: of the sample in the input shard; of an image shard, in its tar (None: not stored).
    reject: whether it stands among the rejects of an embedding shard. gone: whether it was taken down before.
    """

    place: int
    source: str
    key: str | None
    url: str | None
    sha256: str | None
    uid: str | None = None
    relations: tuple[str, ...] = ()
    position: int | None = None
    reject: bool = False
    gone: bool = False

    def digests(self) -> tuple[str | None, str, str | None]:
        """(of the url, of the key, of the bytes)"""
        return url_digest(self.url) if self.url else None, key_digest(self.source, self.key or ""), self.sha256


@dataclass
class Output:
    """An output with an embedpipe.json.

    records: of earlier takedowns; of_sources: those of the folders that it was made from, as read once.
    given: all outputs of the takedown. Other folders that this one names are read only if this user encoded from them.
    """

    path: str
    run: RunCard
    records: list[TakedownRecord] = field(default_factory=list)
    of_sources: dict[str, list[TakedownRecord]] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    @property
    def images(self) -> bool:
        """Whether it holds image shards; else embeddings."""
        return self.run.format == IMAGE_SHARDS

    def entries(self) -> Iterator[ShardManifest]:
        """The committed shards."""
        return manifest.read_manifests(self.path, self.run.shard_digits)

    def rows(self, entry: ShardManifest) -> Iterator[IdentifiedRow]:
        """The rows of a shard, and its rejects."""
        return self._image_rows(entry) if self.images else self._embedding_rows(entry)

    def _image_rows(self, entry: ShardManifest) -> Iterator[IdentifiedRow]:
        name = manifest.shard_name(entry.number, self.run.shard_digits)
        table = read_table(files.join(self.path, f"{name}.parquet"), _IMAGE_COLUMNS)
        stored = 0
        for place, row in enumerate(table.to_pylist()):
            relations = tuple(filter(None, (row["duplicate_of"], row["retry_of"])))
            position = stored if row["status"] == "success" else None
            stored += row["status"] == "success"
            gone = row["error_class"] == "taken_down"
            identity = (row["key"], row["url"], row["sha256"], row["uid"])
            yield IdentifiedRow(place, f"{name}.tar", *identity, relations, position, gone=gone)

    def _embedding_rows(self, entry: ShardManifest) -> Iterator[IdentifiedRow]:
        digits = self.run.shard_digits
        if entry.rows_out:
            reader = open_format(str(self.run.options.get("format", "npy"))).reader
            uids = ("uid",) if self.run.columns.get("uid") == "string" else ()
            table = reader.metadata(self.path, entry, digits, (*_ROW_COLUMNS, *uids))
            for place, row in enumerate(table.to_pylist()):
                identity = (row["src_shard"], row["key"], row["url"], row["sha256"], row.get("uid"))
                yield IdentifiedRow(place, *identity, position=row["src_index"])
        for place, row in enumerate(read_rejects(self.path, entry, digits).to_pylist()):
            of_reject = {"position": row["src_index"], "reject": True}
            yield IdentifiedRow(place, row["src_shard"], row["key"], None, None, **of_reject)

    @cached_property
    def parts(self) -> tuple[SourcePart, ...]:
        """The inputs of an embedding data set: several for a merged one."""
        return parts_of(self.run)

    def source_folder(self, entry: ShardManifest) -> tuple[str, str]:
        """(folder, name there) of the input shard of an embedding shard; an empty folder if unknown."""
        for part in sorted(self.parts, key=lambda part: -len(part.prefix)):
            name = entry.source.name.removeprefix(part.prefix)
            mine = entry.source.name.startswith(part.prefix) and bool(part.source)
            if mine and (len(self.parts) == 1 or files.exists(files.join(part.source, name))):
                return part.source.rstrip("/"), name
        return "", entry.source.name

    def tar_changes(self, entry: ShardManifest) -> list[RewrittenTar]:
        """How takedowns changed the tar that an embedding shard was made from, since it was."""
        folder, name = self.source_folder(entry)
        stem = name.removesuffix(".tar")
        if not folder or not stem.isdecimal():
            return []
        if folder not in self.given and not gave_source(folder, [replace(entry.source, name=name)]):
            return []
        try:
            if folder not in self.of_sources:
                self.of_sources[folder] = read_records(folder)
            records = self.of_sources[folder]
            tar = manifest.read_manifest(folder, int(stem), len(stem)).file(name) if records else None
        except (InputError, DatasetError):  # gone, damaged, or not to be read from here
            return []
        return changes_between(records, int(stem), entry.source_sha256, tar.sha256) if tar is not None else []


@dataclass(frozen=True, slots=True)
class SelectionFolder:
    """A folder of dedup or filter: lists of keys. data: the data set that they are of; empty if unknown."""

    path: str
    data: str


def _selected_from(path: str) -> str:
    try:
        report = json.loads(files.read_if_there(files.join(path, REPORT)) or b"{}")
    except ValueError:
        return ""
    return str(report.get("data") or "").rstrip("/") if isinstance(report, dict) else ""


def open_outputs(paths: tuple[str, ...]) -> tuple[list[Output], list[SelectionFolder]]:
    """The outputs at `paths`, image shards first. Raises InputError for anything else."""
    outputs, selections = [], []
    given = frozenset(files.absolute(path).rstrip("/") for path in paths)
    for path in dict.fromkeys(path.rstrip("/") for path in paths):
        if not files.exists(path):
            raise InputError(f"{path}: no such folder", "Check the path")
        run = manifest.read_run(path)
        if run is not None and run.format in (EMBEDDINGS, IMAGE_SHARDS):
            outputs.append(Output(path, run, read_records(path), given=given))
        if files.exists(files.join(path, KEPT)):
            selections.append(SelectionFolder(path, _selected_from(path)))
        elif run is None or run.format not in (EMBEDDINGS, IMAGE_SHARDS):
            exported = files.exists(files.join(path, ".embedpipe")) or (run is not None and run.format == EXPORT)
            remedy = "Take the rows out of what it was exported from, and export again" if exported else ""
            raise InputError(
                f"{path}: neither image shards of `embedpipe fetch`, nor an embedding data set, nor a selection",
                remedy or "Give folders that embedpipe wrote",
            )
    return sorted(outputs, key=lambda output: not output.images), selections
