"""Samples from a Hugging Face image folder: images, with captions and fields from its tables called `metadata`."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import files
from ..accounts import Accounts, Ledger
from ..errors import EmptyInput, InputError, did_you_mean
from ..types import Reject, Sample, SourceShard
from .base import Digest, Survey
from .folder import FolderReader, LooseMembers
from .grouping import samples
from .image_folder import (
    CAPTION_COLUMNS,
    METADATA_TABLES,
    PATH_COLUMNS,
    accounts_of_files,
    first_of,
    metadata_tables,
    path_below,
)
from .image_folder_rows import table_rows
from .local_paths import nameable
from .names import Naming, printable
from .sample import Member, SampleRules, first_caption

_SHARDS = "rows"  # in the names of shards: those of an output begun with the loose files are called `part-…`
_OTHERWISE = "Rename one, or give `input='folder'` to take the loose files without the table"


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row says of its image, and a hash of all of it."""

    caption: str | None
    fields: dict[str, Any]
    mark: str


@dataclass(frozen=True, slots=True)
class _Tables:
    """The rows of all tables by path. again, nameless: rows passed over, of a path that is there and of none."""

    by_path: dict[str, _Row]
    again: int
    nameless: int


@dataclass(frozen=True, slots=True)
class ImageFolderReader:
    """Reads the images that rows of the metadata tables in `data` name, in path order, in numbered shards.

    A row without its file is a reject; images without a row, and rows that name an image again, are passed over.
    """

    unit = "file"

    data: str
    rules: SampleRules
    samples_per_shard: int = 10_000

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The current state of known shards, then new ones."""
        return self.survey(known).shards

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """See `Reader`."""
        if _began_loose(known):
            return self._loose.survey(known)
        rows = self._rows()
        if not rows:
            raise EmptyInput(f"{self.data}: no rows of metadata tables in it", f"Known: {', '.join(METADATA_TABLES)}")
        there = {path: stat for path in rows if (stat := self._stat(path)) is not None}
        absent = files.FileStat(0, "")
        stats = {
            path: replace(stat := there.get(path, absent), modified=f"{stat.modified} {row.mark}")
            for path, row in rows.items()
        }
        accounts = accounts_of_files(self.data, rows.keys())
        if (unused := self._unused_rows()).seen:
            accounts += unused
        return Survey(self._loose.cut(stats, known, _SHARDS), accounts)

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """The samples of one shard. One whose file cannot be read, or leads out of the folder, is a reject."""
        if _began_loose([shard]):
            yield from self._loose.read(shard, digest, ledger)
            return
        rows = self._rows()
        for path in shard.members:
            digest.update(f"{path}\0{rows[path].mark if path in rows else ''}\0".encode("utf-8", "surrogateescape"))
        ledger = ledger or Ledger(self.unit)
        alone = replace(self.rules, need_image=True, need_caption=False, caption_key=None)
        members = _Contained(FolderReader(self.data, alone), shard, digest, ledger)
        described = self._by_key(shard, rows)
        for sample in samples(members, alone, ledger):
            yield self._described(sample, described[sample.key]) if isinstance(sample, Sample) else sample

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """See `Counting`."""
        self._loose.count(shard, ledger)

    @property
    def _loose(self) -> FolderReader:
        return FolderReader(self.data, self.rules, self.samples_per_shard)

    def _rows(self) -> dict[str, _Row]:
        return self._read_tables().by_path

    def _unused_rows(self) -> Accounts:
        read = self._read_tables()
        passed = {"nameless_row": read.nameless, "repeated_row": read.again}
        return Accounts("row", read.again + read.nameless, 0, {why: count for why, count in passed.items() if count})

    def _read_tables(self) -> _Tables:
        if not files.is_folder(self.data):
            raise InputError(f"{self.data}: no such folder", "Check the path")
        tables = metadata_tables(self.data)
        marks = tuple((table, files.stat(files.join(self.data, table))) for table in tables)
        return _all_rows(self.data, marks, self.rules.caption_key)

    def _stat(self, path: str) -> files.FileStat | None:
        if _leads_out(path):
            return None
        try:
            return files.stat(files.join(self.data, path))
        except (InputError, OSError):
            return None

    def _by_key(self, shard: SourceShard, rows: dict[str, _Row]) -> dict[str, _Row]:
        """The row of each sample: that of its image, where several have one key, as `samples` takes it."""
        naming = self._loose.naming
        ranked = sorted(enumerate(shard.members), key=lambda it: (naming(it[1]).rank, it[0]), reverse=True)
        return {printable(naming(path).key): rows.get(path, _Row(None, {}, "")) for _, path in ranked}

    def _described(self, sample: Sample, row: _Row) -> Sample | Reject:
        caption = row.caption if self.rules.need_caption else None
        if self.rules.need_caption and not (caption or "").strip():
            return Reject(sample.key, sample.index, "read", "caption_missing", "no caption in the row of this image")
        image = sample.image if self.rules.need_image else None
        return replace(sample, image=image, caption=caption, metadata=row.fields)


class _Contained(LooseMembers):
    """The images of one shard; those that lead out of the folder are not opened."""

    def read(self, member: Member) -> Member:
        if _leads_out(member.name.path):
            return replace(member, problem="leads out of the folder")
        return super().read(member)


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "../")) or path in ("..", ".") or "\0" in path


def _began_loose(known: Sequence[SourceShard]) -> bool:
    return bool(known) and not known[0].name.startswith(_SHARDS)


@functools.lru_cache(maxsize=2)
def _all_rows(folder: str, tables: tuple[tuple[str, files.FileStat], ...], caption_key: str | None) -> _Tables:
    """The row of each path below the folder, by path; the first, where several name it."""
    found: dict[str, _Row] = {}
    again = nameless = 0
    for table, _ in tables:
        where = files.join(folder, table)
        names, rows = table_rows(where)
        path_column = first_of(names, PATH_COLUMNS)
        if path_column is None:
            raise InputError(f"{where}: no column {PATH_COLUMNS[0]!r}; it has {', '.join(names)}", _OTHERWISE)
        if caption_key is not None and caption_key not in names:
            raise InputError(f"{where}: no column {caption_key!r}", did_you_mean(caption_key, names))
        caption_column = caption_key or first_of(names, CAPTION_COLUMNS)
        for fields in rows:
            file_name = fields.pop(path_column)
            if not isinstance(file_name, str) or not file_name.strip():
                nameless += 1
                continue
            path = path_below(table, nameable(file_name))
            again += path in found
            found.setdefault(path, _row(fields, caption_column))
    in_order = sorted(found.items(), key=lambda item: (Naming(first_dot=False)(item[0]).key, item[0]))
    return _Tables(dict(in_order), again, nameless)


def _row(fields: dict[str, Any], caption_column: str | None) -> _Row:
    mark = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]
    caption = None
    if caption_column is not None:
        caption = first_caption(fields.get(caption_column))
        if not isinstance(fields.get(caption_column), list):
            fields.pop(caption_column, None)
    return _Row(caption, fields, mark)
