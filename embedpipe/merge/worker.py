"""Merge worker: copies one shard at a time into the merged data set and commits it under its new number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from .. import files, manifest
from ..columns import EXTRA, FIXED, column_names, measured, passed_through, split_row
from ..errors import DatasetError
from ..execute import Task, WorkerLoop, one_by_one
from ..manifest import FileRecord, RunCard, ShardManifest
from ..progress import Listener, TaskReport
from ..store import layout, open_format
from ..store.hashed_writer import write_hashed
from ..store.rejects import read_rejects
from ..taken_down import read_taken_down
from ..types import EmbeddingShard, Reject, SourceShard

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """A shard to copy: its data set's location, that one's format and column types, and its manifest.

    source: the input shard, named as in the merged data set.
    """

    path: str
    digits: int
    columns: dict[str, str]
    entry: ShardManifest
    source: SourceShard


@dataclass(frozen=True, slots=True)
class MergeWork:
    """Picklable factory of merge workers."""

    out: str
    run: RunCard

    def start(self, worker: int) -> WorkerLoop:
        """Nothing to prepare."""
        return one_by_one(self._take)

    def _take(self, task: Task, listen: Listener) -> TaskReport:
        taken: Taken = task.payload
        entry = taken.entry
        self._refuse_taken_down(taken)
        same_columns = list(taken.columns.items()) == list(self.run.columns.items())
        if same_columns and entry.source.name == taken.source.name:
            written = self._copy(task.number, taken)
        else:
            written = self._rewrite(task.number, taken)
        assert self.run.encoder is not None
        committed = dataclasses.replace(
            entry,
            number=task.number,
            source=taken.source,
            files=written,
            fingerprint=self.run.encoder.fingerprint(),
            timing_s={},
        )
        manifest.commit(self.out, committed, self.run.shard_digits)
        return TaskReport(1, entry.rows_out, entry.rows_rejected, entry.rejects, committed.bytes())

    def _refuse_taken_down(self, taken: Taken) -> None:
        """Raise DatasetError for a shard with rows that were taken out of the merged data set."""
        gone = read_taken_down(self.out)
        if gone is None or not taken.entry.rows_out:
            return
        reader = open_format(str(self.run.options["format"])).reader
        rows = reader.metadata(taken.path, taken.entry, taken.digits, ("key", "url", "sha256")).to_pylist()
        if any(gone.has_row(taken.source.name, row["key"], row["url"], row["sha256"]) for row in rows):
            raise DatasetError(
                f"{taken.path}: {taken.entry.source.name} has rows that were taken out of {self.out}",
                "Take them out of it, too, and merge again",
            )

    def _copy(self, number: int, taken: Taken) -> tuple[FileRecord, ...]:
        """Copy the files unchanged, under the new number, verifying each checksum on the way."""
        before = layout.data_paths(taken.entry.number, taken.digits)
        renamed = dict(zip(before, layout.data_paths(number, self.run.shard_digits), strict=True))
        written = []
        for record in taken.entry.files:
            if record.path not in renamed:
                raise DatasetError(
                    f"{taken.path}: the manifest of shard {taken.entry.number} lists {record.path}, "
                    "where no such file belongs",
                    _REMEDY,
                )
            written.append(write_hashed(self.out, renamed[record.path], _Copy(taken.path, record)))
        return tuple(written)

    def _rewrite(self, number: int, taken: Taken) -> tuple[FileRecord, ...]:
        """Rewrite the same embeddings with metadata that names another input shard, or has other columns."""
        entry = taken.entry
        for record in entry.files:
            if files.sha256(files.join(taken.path, record.path)) != record.sha256:
                raise _damaged(taken.path, record)
        storage = open_format(str(self.run.options["format"]))
        reader, place = storage.reader, (taken.path, entry)
        rejects = read_rejects(*place, taken.digits).to_pylist()
        shard = EmbeddingShard(
            number=number,
            image=reader.embeddings(*place, "image", taken.digits) if entry.rows_out else None,
            text=reader.embeddings(*place, "text", taken.digits) if entry.rows_out else None,
            metadata={name: [] for name in column_names(self.run.columns)},
            rejects=tuple(
                Reject(row["key"], row["src_index"], row["stage"], row["error_class"], row["message"])
                for row in rejects
            ),
            text_tokens=reader.text_tokens(*place, taken.digits) if entry.rows_out else None,
        )
        if entry.rows_out:
            table = reader.metadata(*place, taken.digits)
            shard = dataclasses.replace(shard, metadata=_metadata(table, taken, self.run.columns))
        return storage.write(self.out, shard, taken.source.name, self.run.columns, self.run.shard_digits)


_REMEDY = "`embedpipe.verify(deep=True, repair=True)` on that data set drops it; encode it again, and merge again"


def _damaged(path: str, record: FileRecord) -> DatasetError:
    location = files.join(path, record.path)
    return DatasetError(f"{location}: the checksum does not match: its bytes were changed", _REMEDY)


@dataclass(frozen=True, slots=True)
class _Copy:
    """Copies a file to a stream; if it is damaged, raises at the end, so that the copy never appears."""

    path: str
    record: FileRecord

    def __call__(self, stream: BinaryIO) -> None:
        digest = hashlib.sha256()
        with files.reading(files.join(self.path, self.record.path)) as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != self.record.sha256:
            raise _damaged(self.path, self.record)


def _metadata(table: pa.Table, taken: Taken, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    """The rows' metadata with the new name of their input shard, converted to `columns` as in `encode`."""
    if dict(columns) == taken.columns:
        found: dict[str, list[Any]] = table.to_pydict()
        return {**found, "src_shard": [taken.source.name] * table.num_rows}
    rows: dict[str, list[Any]] = {name: [] for name in column_names(columns)}
    ours, kept = passed_through(columns), measured(columns)
    # A measured column there that is an input column of another type here is treated as an input column.
    theirs = [name for name in taken.columns if name not in kept]
    for row in table.to_pylist():
        # Null if that data set lacks it: its rows are not measured again.
        stored = {name: row.get(name) for name in (*FIXED, *kept)} | {"src_shard": taken.source.name}
        passed = {name: row[name] for name in theirs if row[name] is not None}
        passed |= json.loads(row[EXTRA]) if row[EXTRA] else {}
        for name, value in {**stored, **split_row(passed, ours, stored)}.items():
            rows[name].append(value)
    return rows
