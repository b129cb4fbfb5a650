"""From what the download processes left to a committed shard: the tar, the parquet, the manifest last."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from .. import files, manifest
from ..files import Written
from ..manifest import FileRecord, ShardManifest
from ..types import SourceShard
from . import layout
from .outcome import Failure
from .plan import ShardRange
from .tar import TarWriter
from .tasks import Task

_JSON_COLUMNS = ("uid", "url", "caption", "key", "sha256", "width", "height", "original_width", "original_height")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FetchedShard:
    """A shard whose parts are all there: its rows, why some were never asked for, and the parts with the others."""

    shard: ShardRange
    rows: pa.Table
    refused: Mapping[int, Failure]
    parts: Sequence[Task]


def uid(url: str | None, caption: str | None) -> str:
    """What identifies a pair, whatever shard it lands in: 32 hex digits of the sha256 of `[url, caption]` as JSON."""
    text = json.dumps([url, caption], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def key_of(shard: int, row: int, shard_digits: int, samples_per_shard: int) -> str:
    """The key of a row: its shard's number, then its position in the shard."""
    return f"{shard:0{shard_digits}d}{row:0{len(str(samples_per_shard - 1))}d}"


def commit(out: str, fetched: FetchedShard, shard_digits: int, samples_per_shard: int) -> ShardManifest:
    """Write a shard's files and then its manifest. The bytes depend on the rows and the answers alone."""
    shard = fetched.shard
    outcomes = _outcomes(fetched)
    rows = [
        _row(source, outcomes.get(i), key_of(shard.number, i, shard_digits, samples_per_shard))
        for i, source in enumerate(fetched.rows.select(["url", "caption"]).to_pylist())
    ]
    name = manifest.shard_name(shard.number, shard_digits)
    tar = _write_tar(files.join(out, f"{name}.tar"), rows, outcomes, _passed_rows(fetched.rows))
    parquet = _write_parquet(files.join(out, f"{name}.parquet"), rows, fetched.rows)
    failed = Counter(row["error_class"] for row in rows if row["status"] == "failed")
    record = ShardManifest(
        number=shard.number,
        source=shard.source,
        source_sha256=_source_sha256(shard.source),
        rows_in=len(rows),
        rows_out=len(rows) - failed.total(),
        rows_rejected=failed.total(),
        rejects=dict(sorted(failed.items())),
        files=(
            FileRecord(f"{name}.tar", tar.bytes, tar.sha256),
            FileRecord(f"{name}.parquet", parquet.bytes, parquet.sha256),
        ),
    )
    manifest.commit(out, record, shard_digits)
    return record


def _source_sha256(source: SourceShard) -> str:
    kind, _, value = source.modified.partition(":")
    return value if kind == "sha256" else ""


def _outcomes(fetched: FetchedShard) -> dict[int, Row]:
    """By row: how it ended, as the download processes tell it; their part is added as `part`."""
    found: dict[int, Row] = {
        row: {"error_class": failure.error_class, "error_message": failure.message, "attempts": 0}
        for row, failure in fetched.refused.items()
    }
    for part in fetched.parts:
        with pa.memory_map(part.outcomes_file) as source, pa.ipc.open_file(source) as reader:
            for outcome in reader.read_all().to_pylist():
                found[outcome["row"]] = {**outcome, "part": part}
    return found


def _row(source: Row, outcome: Row | None, key: str) -> Row:
    """One row of the parquet, without the passed-through columns."""
    if outcome is None:
        outcome = {"error_class": "lost", "error_message": "img2dataset did not report this row", "attempts": 0}
    row = {name: outcome.get(name) for name in layout.FIXED.names}
    status = "success" if outcome["error_class"] is None else "failed"
    return {**row, **source, "key": key, "status": status, "uid": uid(source["url"], source["caption"])}


def _passed_rows(rows: pa.Table) -> list[Row]:
    return [
        {name: json_safe(value) for name, value in row.items()} for row in rows.drop(["url", "caption"]).to_pylist()
    ]


def _write_tar(location: str, rows: Sequence[Row], outcomes: Mapping[int, Row], passed: Sequence[Row]) -> Written:
    with files.writing(location) as stream, contextlib.ExitStack() as opened:
        tar = TarWriter(stream)
        images = {
            part: opened.enter_context(Path(part.images_file).open("rb"))
            for part in dict.fromkeys(outcome["part"] for outcome in outcomes.values() if "part" in outcome)
        }
        for i, row in enumerate(rows):
            if row["status"] != "success":
                continue
            outcome = outcomes[i]
            image = images[outcome["part"]]
            image.seek(outcome["offset"])
            # Sorted: rows are in the order of their keys, and so are these endings.
            tar.add(f"{row['key']}.jpg", image.read(outcome["bytes"]))
            tar.add(f"{row['key']}.json", _json_member(row, passed[i] if passed else {}))
            if row["caption"] is not None:
                tar.add(f"{row['key']}.txt", row["caption"].encode())
        return tar.finish()


def _json_member(row: Row, passed: Row) -> bytes:
    known = {name: row[name] for name in _JSON_COLUMNS if name != "caption" or row[name] is not None}
    return json.dumps({**known, **passed}, ensure_ascii=False).encode()


def _write_parquet(location: str, rows: Sequence[Row], source: pa.Table) -> Written:
    table = pa.Table.from_pylist(list(rows), schema=layout.FIXED)
    for field in list(source.schema)[2:]:
        table = table.append_column(field, source.column(field.name))
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table.combine_chunks(), sink, compression="zstd")
    return files.write_bytes(location, sink.getvalue().to_pybytes())


def json_safe(value: Any) -> Any:
    """`value` as JSON can hold it: times in ISO form, bytes in base64, NaN as null, what else there is as its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):  # datetime, and pandas' Timestamp, are dates
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): json_safe(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    return str(value)
