"""What is left of an image shard: its tar without some samples, its table with tombstones in their rows.

A tombstone keeps uid and key (the row's position), as a failure of the class `taken_down`: counts add up, fetch knows
that the row is done, and nothing else of it is left. Shards of an export lose the row itself.
"""

from __future__ import annotations

import dataclasses
import tarfile
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import files, manifest
from ..files import Written
from ..manifest import FileRecord, ShardManifest
from ..parquet_tables import read_table
from ..taken_down import ERROR_CLASS, RewrittenTar, url_digest
from ..tar import TarWriter
from ..types import SourceShard
from .outputs import IdentifiedRow, Output

_LEFT = ("uid", "key", "retry_of")
_RETRY_OF, _RETRIED_CLASS = ":retry_of", ":retried_class"  # of the lists in retry/


def image_shard_without(
    output: Output, entry: ShardManifest, rows: Sequence[IdentifiedRow], place: str
) -> tuple[ShardManifest, RewrittenTar]:
    """Write the shard without `rows` below `place`; returns its manifest, and how its tar changed."""
    name = manifest.shard_name(entry.number, output.run.shard_digits)
    tar, offsets, members = _write_tar(output, name, {str(row.key) for row in rows}, place)
    table = read_table(files.join(output.path, f"{name}.parquet"))
    kept = _left_rows(table, {row.place for row in rows}, "selection" in output.run.options)
    for row in kept:
        row["offset"] = offsets.get(row["key"]) if row["offset"] is not None else None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(kept, schema=table.schema), sink, compression="zstd")
    written = files.write_bytes(files.join(place, f"{name}.parquet"), sink.getvalue().to_pybytes())
    failed = Counter(row["error_class"] for row in kept if row["status"] == "failed")
    changed = dataclasses.replace(
        entry,
        rows_in=len(kept),
        rows_out=len(kept) - failed.total(),
        rows_rejected=failed.total(),
        rejects=dict(sorted(failed.items())),
        retried=_retried(output, entry, kept),
        files=(FileRecord(f"{name}.tar", tar.bytes, tar.sha256), FileRecord(f"{name}.parquet", *_facts(written))),
    )
    removed = tuple(sorted(row.position for row in rows if row.position is not None))
    before = next(record.sha256 for record in entry.files if record.path == f"{name}.tar")
    return changed, RewrittenTar(entry.number, before, tar.sha256, removed, members)


def _facts(written: Written) -> tuple[int, str]:
    return written.bytes, written.sha256


def _left_rows(table: pa.Table, gone: Collection[int], whole_rows: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    if whole_rows:
        return [row for place, row in enumerate(rows) if place not in gone]
    tombstone = {"status": "failed", "error_class": ERROR_CLASS, "error_message": "taken down", "attempts": 0}
    return [
        dict.fromkeys(row) | {name: row[name] for name in _LEFT} | tombstone if place in gone else row
        for place, row in enumerate(rows)
    ]


def _write_tar(output: Output, name: str, gone: Collection[str], place: str) -> tuple[Written, dict[str, int], int]:
    """Copy the tar without the samples of those keys.

    Returns also where each image begins, by key, and how many members were left out.
    """
    offsets: dict[str, int] = {}
    left_out = 0
    with (
        files.reading(files.join(output.path, f"{name}.tar")) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
        files.writing(files.join(place, f"{name}.tar")) as target,
    ):
        tar = TarWriter(target)
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member
            key, _, ending = member.name.rpartition(".")
            content = archive.extractfile(member)
            if key in gone or content is None:
                left_out += 1
                continue
            begins = tar.add(member.name, content.read())
            if ending not in ("json", "txt"):
                offsets[key] = begins
        return tar.finish(), offsets, left_out


def _retried(output: Output, entry: ShardManifest, rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The earlier failures of the rows of a round of retries: those of tombstones are tombstones, too."""
    if not entry.retried:
        return entry.retried
    _, retry, span = entry.source.name.split(":")
    first = int(span.partition("-")[0])
    classes = read_table(_retry_list(output, int(retry)), [_RETRIED_CLASS]).column(0).to_pylist()
    classes = classes[first : first + len(rows)]
    said = [
        ERROR_CLASS if row["error_class"] == ERROR_CLASS else earlier
        for row, earlier in zip(rows, classes, strict=True)
    ]
    return dict(sorted(Counter(said).items()))


def _retry_list(output: Output, retry: int) -> str:
    return files.join(output.path, "retry", f"{retry:05d}.parquet")


def clear_retry_lists(output: Output, urls: Collection[str]) -> None:
    """Empty the rows of those urls (digests) in the lists of retries, and record what the lists are now."""
    inputs = [dict(entry) for entry in output.run.options.get("inputs", ())]
    renamed: dict[str, tuple[int, str]] = {}
    for entry in inputs:
        if not entry.get("retry"):
            continue
        location = _retry_list(output, entry["retry"])
        table = read_table(location)
        column = str(output.run.options.get("url_col") or "url")
        rows = table.to_pylist()
        gone = [bool(row.get(column)) and url_digest(row[column]) in urls for row in rows]
        if any(gone):
            left = [
                dict.fromkeys(row) | {_RETRY_OF: row[_RETRY_OF], _RETRIED_CLASS: ERROR_CLASS} if out else row
                for row, out in zip(rows, gone, strict=True)
            ]
            with files.writing(location) as sink:
                pq.write_table(pa.Table.from_pylist(left, schema=table.schema), sink)
        entry["bytes"], entry["identity"] = files.stat(location).bytes, f"sha256:{files.sha256(location)}"
        renamed[f"{entry['name']}:"] = (entry["bytes"], entry["identity"])
    if not renamed:
        return
    plan = tuple(_renewed(source, renamed) for source in output.run.plan)
    output.run = dataclasses.replace(output.run, options={**output.run.options, "inputs": inputs}, plan=plan)
    manifest.write_run(output.path, output.run)


def _renewed(source: SourceShard, lists: dict[str, tuple[int, str]]) -> SourceShard:
    found = next((facts for name, facts in lists.items() if source.name.startswith(name)), None)
    return dataclasses.replace(source, bytes=found[0], modified=found[1]) if found is not None else source
