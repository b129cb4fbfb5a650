"""Samples from tables of local paths: a row names its image, relative to the table, and carries caption and fields."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import files
from ..accounts import Accounts, Ledger
from ..errors import EmptyInput, InputError, did_you_mean
from ..types import Reject, Sample, SourceShard
from .base import Digest, Survey
from .delimited import DialectOptions
from .folder import unreadable
from .image_folder import CAPTION_COLUMNS, first_of
from .local_paths import NoPath, located, nameable, path_column
from .names import IMAGE, Name, Naming, printable
from .rooted import OutsideRoot, read_below
from .sample import MAX_CAPTION_BYTES, Draft, Member, SampleRules, first_caption, make_sample
from .tables.plain_rows import plain_rows, surveyed
from .tables.table import locate_tables
from .tables.table_file import TableFile, TableOptions

_URLS_OF_TXT = "url"
_KEY_DIGITS = 9


@dataclass(frozen=True, slots=True)
class LocalPaths:
    """What is known of a table of local paths.

    root: the folder that no path may lead out of, links resolved; one that is not absolute is relative to the table's
    folder. column: with the paths; None for the first of `PATH_COLUMNS` that is there. dialect: of a text table.
    within_table: open nothing outside the table's own folder either; the root then only says what keys are relative to.
    """

    root: str
    column: str | None = None
    dialect: DialectOptions = field(default_factory=DialectOptions)
    within_table: bool = False


@dataclass(frozen=True, slots=True)
class PathTableReader:
    """Reads the images that the rows of tables at `data` name, in the order of the rows, in numbered shards.

    `data` is a csv, tsv, txt, json, jsonl or parquet file, a folder or a pattern of them. Every row is a sample or a
    reject. Its key is the path below the root without the extension, with a number where an earlier row of the shard
    has the same; or the value of `key_column`.
    """

    unit = "row"

    data: str
    rules: SampleRules
    paths: LocalPaths
    samples_per_shard: int = 10_000

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """Known shards as they are now, then new ones for rows that came behind them."""
        found: list[SourceShard] = []
        for file in self._tables():
            ranges = [span for shard in known if (span := _span(shard.name, file.name)) is not None]
            found += self._cut(file, ranges)
        if not found:
            raise EmptyInput(f"{self.data}: no rows in it", "A row names an image and carries its caption")
        return found

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """See `Reader`."""
        shards = self.shards(known)
        options = TableOptions(self.paths.dialect)
        blank = sum(surveyed(file, options)[2] for file in locate_tables(self.data))
        return Survey(shards, Accounts("line", blank, 0, {"blank_line": blank}) if blank else None)

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """The samples of one shard. A row whose file cannot be read, or that leads out of the root, is a reject."""
        ledger = ledger or Ledger(self.unit)
        file = self._table_of(shard)
        columns, root = self._columns(file), self._root
        first, last = _span(shard.name, file.name) or (0, 0)
        taken: dict[str, int] = {}
        for index, row in enumerate(islice(plain_rows(file), first, last)):
            ledger.see()
            ledger.use(str(first + index))
            digest.update(f"{_mark(row)}\0".encode())
            path = _located(row.get(columns.path), file)
            image = self._image(path, file.folder if self.paths.within_table else root, digest)
            wanted = _key(path, root, row, columns, first + index)
            again = columns.key is not None and wanted in taken
            key = wanted if columns.key is not None else _free(wanted, taken)
            taken.setdefault(key, 1)
            if again:
                yield Reject(key, index, "read", "duplicate_key", "a sample with this key came earlier")
                continue
            yield self._sample(Draft(key, index, {} if image is None else {IMAGE: image}), row, columns)

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """See `Counting`."""
        file = self._table_of(shard)
        first, last = _span(shard.name, file.name) or (0, 0)
        for _ in islice(plain_rows(file), first, last):
            ledger.see()
            ledger.use("")

    @property
    def _root(self) -> str:
        """The root as an absolute path. Raises InputError if it is no folder of this machine."""
        for place in (self.data, self.paths.root):
            if not files.is_local(place):
                raise InputError(f"{place}: local paths are read on this machine only", "Copy table and images here")
        root = str(Path(files.local_path(folder_of_tables(self.data)), files.local_path(self.paths.root)).absolute())
        if not files.is_folder(root):
            raise InputError(f"{root}: no such folder", "Give `local_root` a folder that exists")
        return os.path.normpath(root)

    def _tables(self) -> list[TableFile]:
        _ = self._root  # which refuses what is none
        options = TableOptions(self.paths.dialect)
        return [surveyed(file, options)[0] for file in locate_tables(self.data)]

    def _table_of(self, shard: SourceShard) -> TableFile:
        name = shard.name.rpartition(":")[0]
        place = files.join(folder_of_tables(self.data), name)
        if not files.exists(place):
            raise InputError(f"{place}: no such file", "Check the path")
        file = next(file for file in locate_tables(self.data) if file.name == name)
        return surveyed(file, TableOptions(self.paths.dialect))[0]

    def _columns(self, file: TableFile) -> _Columns:
        names = surveyed(replace(file, dialect=None), TableOptions(self.paths.dialect))[1]
        path = path_column(names, self.paths.column, _URLS_OF_TXT, file.location, "file_column")
        for name in filter(None, (self.rules.caption_key, self.rules.key_column)):
            if name not in names:
                raise InputError(f"{file.location}: no column {name!r}", did_you_mean(name, names))
        caption = self.rules.caption_key or first_of(names, CAPTION_COLUMNS)
        return _Columns(path, caption, self.rules.key_column)

    def _cut(self, file: TableFile, ranges: Sequence[tuple[int, int]]) -> Iterator[SourceShard]:
        """The shards of a file: those ranges of rows, then its other rows in pieces."""
        columns = self._columns(file)
        rows = plain_rows(file)
        reached = 0
        for first, last in sorted(ranges):
            yield self._shard(file, columns, (first, last), islice(rows, last - first))
            reached = last
        while piece := list(islice(rows, self.samples_per_shard)):
            yield self._shard(file, columns, (reached, reached + len(piece)), iter(piece))
            reached += len(piece)

    def _shard(
        self, file: TableFile, columns: _Columns, span: tuple[int, int], rows: Iterator[dict[str, Any]]
    ) -> SourceShard:
        marks = hashlib.sha256()
        total = 0
        for row in rows:
            stat = self._stat(file, row.get(columns.path))
            total += stat.bytes
            marks.update(f"{_mark(row)}\0{stat.bytes}\0{stat.modified}\0".encode())
        return SourceShard(f"{file.name}:{span[0]}-{span[1] - 1}", total, marks.hexdigest())

    def _stat(self, file: TableFile, value: Any) -> files.FileStat:
        path = _located(value, file)
        absent = files.FileStat(0, "")
        if isinstance(path, NoPath):
            return absent
        try:
            return files.stat(path)
        except (InputError, OSError, ValueError):
            return absent

    def _image(self, path: str | NoPath, root: str, digest: Digest) -> Member | None:
        """The image that a row names: its bytes, or why there are none. None if it names none, or none is wanted."""
        if not self.rules.need_image or (isinstance(path, NoPath) and not path.why):
            return None
        if isinstance(path, NoPath):
            return Member(_named("row"), problem=path.why)
        most = self.rules.max_sample_bytes
        try:
            data = read_below(root, path, most + 1)
        except OutsideRoot as problem:
            return Member(_named(path), problem=printable(str(problem.strerror)))
        except OSError as problem:
            return Member(_named(path), problem=unreadable(problem, path))
        digest.update(f"{len(data)}\0".encode())
        digest.update(data)
        return Member(_named(path), data=data if len(data) <= most else None, size=len(data))

    def _sample(self, draft: Draft, row: dict[str, Any], columns: _Columns) -> Sample | Reject:
        caption = first_caption(row.get(columns.caption)) if columns.caption and self.rules.need_caption else None
        if self.rules.need_caption and not (caption or "").strip():
            return Reject(draft.key, draft.index, "read", "caption_missing", "no caption in this row")
        if len((caption or "").encode(errors="replace")) > MAX_CAPTION_BYTES:
            said = f"the caption is larger than {MAX_CAPTION_BYTES} bytes"
            return Reject(draft.key, draft.index, "read", "caption_too_large", said)
        sample = make_sample(draft, replace(self.rules, need_caption=False))
        if isinstance(sample, Reject):
            return replace(sample, message=sample.message.replace(" beside the caption", " named in this row"))
        # A list of captions stays, and so does the path where the key does not tell it.
        told = {columns.caption if not isinstance(row.get(columns.caption or ""), list) else None}
        told |= {columns.key} if columns.key is not None else {columns.path}
        return replace(
            sample, caption=caption, metadata={name: value for name, value in row.items() if name not in told}
        )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The role of each column; None if there is none."""

    path: str
    caption: str | None
    key: str | None


def folder_of_tables(data: str) -> str:
    """The folder that a root which is not absolute is relative to."""
    if files.exists(data):
        return data if files.is_folder(data) else posixpath.dirname(data) or "."
    return files.fixed_folder(data)


def _located(value: Any, file: TableFile) -> str | NoPath:
    if isinstance(value, dict):  # an image of Hugging Face's datasets without its bytes
        value = value.get("path")
    if value is None or (isinstance(value, str) and not value.strip()):
        return NoPath("")
    return located(nameable(value), file.folder) if isinstance(value, str) else NoPath("no text, and so no path")


def _named(path: str) -> Name:
    return Naming(first_dot=False)(path)


def _key(path: str | NoPath, root: str, row: dict[str, Any], columns: _Columns, number: int) -> str:
    """The key that a row asks for: of the key column, else its path below the root; else the row's number."""
    if columns.key is not None and row.get(columns.key) is not None:
        return printable(nameable(str(row[columns.key])))
    if columns.key is not None or isinstance(path, NoPath) or "\0" in path:
        return f"{number:0{_KEY_DIGITS}d}"
    below = os.path.relpath(path, root)
    if below.startswith("../"):  # the root, or the table, was given by way of a link
        below = os.path.relpath(os.path.realpath(path), os.path.realpath(root))
    return printable(_named(below).key)


def _free(key: str, taken: dict[str, int]) -> str:
    """`key`, or with the first number that makes it one which is not taken: `a`, `a#2`, `a#3`."""
    found = key
    while found in taken:
        taken[key] += 1
        found = f"{key}#{taken[key]}"
    return found


def _mark(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _span(name: str, table: str) -> tuple[int, int] | None:
    """The rows of a shard of `table`, from the first to behind the last; None for a shard of another table."""
    file, _, rows = name.rpartition(":")
    first, dash, last = rows.partition("-")
    return (int(first), int(last) + 1) if file == table and dash and first.isdigit() and last.isdigit() else None
