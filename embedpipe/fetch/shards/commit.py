"""Commit a shard from the files of the download processes: tar, then parquet, then manifest."""

from __future__ import annotations

import base64
import datetime
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ... import files, manifest
from ...accounts import Accounts
from ...files import Written
from ...manifest import FileRecord, ShardManifest
from ...parquet_tables import read_table
from ...taken_down import TakenDown
from ...tar import TarWriter
from ...types import SourceShard
from ...uid import uid
from ..config import FetchConfig
from ..download.messages import DownloadTask
from ..outcome import TAKEN_DOWN, Failure
from ..plan import ShardRange
from ..tables import schema
from . import duplicates
from .seen import Place, StoredContents

_JSON_COLUMNS = ("uid", "url", "caption", "key", "sha256", "width", "height", "original_width", "original_height")
# What Arrow raises for values that Python has no like of: times beyond the year 9999, unknown time zones.
_NO_PYTHON = (OverflowError, ValueError, LookupError)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FetchedShard:
    """A shard with all its parts: its rows, the reasons why some were never requested, and the parts with the others.

    images: whether they come from a folder, with their fields as JSON in one column. repeats: the rows that repeat the
    url of an earlier row, and its location (shard, row). columns: those that fetch fills. accounts: of what the shard
    was cut from.
    """

    shard: ShardRange
    rows: pa.Table
    refused: Mapping[int, Failure]
    repeats: Mapping[int, Place]
    parts: Sequence[DownloadTask]
    images: bool
    columns: pa.Schema
    accounts: Accounts


@dataclass(frozen=True, slots=True)
class CommittedShard:
    """A committed shard: its record, its images as (row, sha256), its failures as (url, error class).

    late_rejects: by class, those found only while packing.
    """

    record: ShardManifest
    stored: list[tuple[int, str]]
    late_rejects: dict[str, int]
    failures: list[tuple[str | None, str]]


def key_of(shard: int, row: int, shard_digits: int, samples_per_shard: int) -> str:
    """The key of a row: its shard's number, then its position in the shard."""
    return f"{shard:0{shard_digits}d}{row:0{len(str(samples_per_shard - 1))}d}"


def shard_of_key(key: str, samples_per_shard: int) -> int:
    """The number of the shard in a key of `key_of`."""
    return int(key[: -len(str(samples_per_shard - 1))])


def commit_shard(
    out: str,
    fetched: FetchedShard,
    shard_digits: int,
    config: FetchConfig,
    contents: StoredContents | None = None,
    taken: TakenDown | None = None,
) -> CommittedShard:
    """Write a shard's files and then its manifest. The bytes depend on the rows and the responses alone.

    contents: those of earlier shards; rows with the same bytes become failures. taken: what was taken out of the
    output; rows with its bytes become failures, too.
    """
    shard = fetched.shard
    name_key = functools.partial(key_of, shard_digits=shard_digits, samples_per_shard=config.samples_per_shard)
    source, retry_of, retried = _without_retry(fetched.rows)
    outcomes = _outcomes(fetched)
    duplicates.answer_repeats(outcomes, shard.number, fetched.repeats, out, shard_digits, name_key)
    if taken is not None:
        duplicates.drop_taken(outcomes, taken)
    if contents is not None:
        duplicates.drop_stored(outcomes, shard.number, contents, name_key)
    rows = [
        _row(pair, outcomes.get(i), name_key(shard.number, i), fetched.columns) | {"retry_of": retry_of[i]}
        for i, pair in enumerate(source.select(["url", "caption"]).to_pylist())
    ]
    name = manifest.shard_name(shard.number, shard_digits)
    json_columns = (*_JSON_COLUMNS, *fetched.columns.names[len(schema.FIXED) :])
    members = _Members(
        rows, outcomes, _passed_rows(source, fetched.images, json_columns), config.image_format, json_columns
    )
    tar = _write_tar(files.join(out, f"{name}.tar"), members)
    parquet = _write_parquet(files.join(out, f"{name}.parquet"), rows, source, fetched.columns)
    failed = Counter(row["error_class"] for row in rows if row["status"] == "failed")
    record = ShardManifest(
        number=shard.number,
        source=shard.source,
        source_sha256=_source_sha256(shard.source),
        rows_in=len(rows),
        rows_out=len(rows) - failed.total(),
        rows_rejected=failed.total(),
        rejects=dict(sorted(failed.items())),
        retried=dict(sorted(retried.items())),
        accounts=fetched.accounts,
        files=(
            FileRecord(f"{name}.tar", tar.bytes, tar.sha256),
            FileRecord(f"{name}.parquet", parquet.bytes, parquet.sha256),
        ),
    )
    manifest.commit(out, record, shard_digits)
    late = Counter(
        row["error_class"]
        for i, row in enumerate(rows)
        if row["status"] == "failed" and (i in fetched.repeats or row["error_class"] in ("duplicate", "taken_down"))
    )
    stored = [(i, row["sha256"]) for i, row in enumerate(rows) if row["sha256"]]
    failures = [(row["url"], row["error_class"]) for row in rows if row["status"] == "failed"]
    return CommittedShard(record, stored, dict(late), failures)


def stored_contents(out: str, number: int, shard_digits: int) -> list[tuple[int, str]]:
    """The images of a committed shard: (row, sha256)."""
    location = files.join(out, f"{manifest.shard_name(number, shard_digits)}.parquet")
    hashes = read_table(location, ["sha256"]).column("sha256").to_pylist()
    return [(row, sha256) for row, sha256 in enumerate(hashes) if sha256]


def _without_retry(rows: pa.Table) -> tuple[pa.Table, list[str | None], Counter[str]]:
    """The rows without the retry columns, the row that each retries, and its earlier failure."""
    if schema.RETRY_OF not in rows.column_names:
        return rows, [None] * rows.num_rows, Counter()
    retried = Counter(rows.column(schema.RETRIED_CLASS).to_pylist())
    plain = rows.drop([schema.RETRY_OF, schema.RETRIED_CLASS])
    return plain, rows.column(schema.RETRY_OF).to_pylist(), retried


def _source_sha256(source: SourceShard) -> str:
    kind, _, value = source.modified.partition(":")
    return value if kind == "sha256" else ""


def _outcomes(fetched: FetchedShard) -> dict[int, Row]:
    """The outcome of each row, as reported by the download processes, and the `file` with its image."""
    found: dict[int, Row] = {
        row: {"error_class": failure.error_class, "error_message": failure.message, "attempts": 0}
        for row, failure in fetched.refused.items()
    }
    for part in fetched.parts:
        with pa.memory_map(part.outcomes_file) as source, pa.ipc.open_file(source) as reader:
            for outcome in reader.read_all().to_pylist():
                found[outcome["row"]] = {**outcome, "file": part.images_file}
    return found


def _row(source: Row, outcome: Row | None, key: str, columns: pa.Schema) -> Row:
    """One row of the parquet, without the passed-through columns."""
    if outcome is None:
        outcome = {"error_class": "lost", "error_message": "img2dataset did not report this row", "attempts": 0}
    row = {name: outcome.get(name) for name in columns.names if name != "offset"}
    status = "success" if outcome["error_class"] is None else "failed"
    return {**row, **source, "key": key, "status": status, "uid": uid(source["url"], source["caption"])}


def _passed_rows(rows: pa.Table, images: bool, taken: Sequence[str]) -> list[Row]:
    if images:
        return [_fields(text, taken) for text in rows.column("metadata").to_pylist()]
    passed = rows.drop(["url", "caption"])
    columns = [_python_values(column) for column in passed.columns]
    return [dict(zip(passed.column_names, map(json_safe, row), strict=True)) for row in zip(*columns, strict=True)]


def _python_values(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.to_pylist())
    except _NO_PYTHON:
        return [_python_value(scalar) for scalar in column]


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _NO_PYTHON:
        return None


def _fields(text: str | None, taken: Sequence[str]) -> Row:
    """The fields of a .json beside an image, for the .json in the tar, whose own fields are `taken`."""
    fields: Row = json_safe(json.loads(text or "{}"))
    return {f"source_{name}" if name in taken else name: value for name, value in fields.items()}


@dataclass(frozen=True, slots=True)
class _Members:
    """The members of a tar, row by row. Sets the offset of each image in `rows`. json_columns: those in the .json."""

    rows: Sequence[Row]
    outcomes: Mapping[int, Row]
    passed: Sequence[Row]
    image_format: str
    json_columns: Sequence[str]


def _write_tar(location: str, members: _Members) -> Written:
    outcomes = members.outcomes
    with files.writing(location) as stream:
        tar = TarWriter(stream)
        for i, row in enumerate(members.rows):
            if row["status"] != "success":
                continue
            outcome = outcomes[i]
            with files.reading(outcome["file"]) as source:
                source.seek(outcome["offset"])
                image = source.read(outcome["bytes"])
            row["offset"] = _add_sample(tar, row, image, members, i)
        return tar.finish()


def _add_sample(tar: TarWriter, row: Row, image: bytes, members: _Members, i: int) -> int:
    """Write the members of one sample, sorted by name; returns the offset of its image's bytes."""
    parts = {
        members.image_format: image,
        "json": _json_member(row, members.passed[i] if members.passed else {}, members.json_columns),
    }
    if row["caption"] is not None:
        parts["txt"] = row["caption"].encode()
    begins = {ending: tar.add(f"{row['key']}.{ending}", data) for ending, data in sorted(parts.items())}
    return begins[members.image_format]


def _json_member(row: Row, passed: Row, columns: Sequence[str]) -> bytes:
    known = {name: row[name] for name in columns if name != "caption" or row[name] is not None}
    return json.dumps({**known, **passed}, ensure_ascii=False).encode()


def _write_parquet(location: str, rows: Sequence[Row], source: pa.Table, columns: pa.Schema) -> Written:
    # Of what was taken out of the output, nothing but its place is kept, however often a table names it.
    kept = pa.array([row["error_class"] != TAKEN_DOWN.error_class for row in rows], pa.bool_())
    left = ("uid", "key", "status", "error_class", "error_message", "attempts", "retry_of")
    stored = [
        row if keep else {name: row[name] for name in left} for row, keep in zip(rows, kept.to_pylist(), strict=True)
    ]
    table = pa.Table.from_pylist(stored, schema=columns)
    for field in list(source.schema)[2:]:
        column = source.column(field.name)
        if pc.all(kept).as_py() is False:
            column = pc.if_else(kept, column, pa.scalar(None, field.type))
        table = table.append_column(field, column)
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table.combine_chunks(), sink, compression="zstd")
    return files.write_bytes(location, sink.getvalue().to_pybytes())


def json_safe(value: Any) -> Any:
    """`value` as JSON: times in ISO format, bytes in base64, NaN as null, anything else as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):  # includes datetime and pandas' Timestamp
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): json_safe(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    return str(value)
