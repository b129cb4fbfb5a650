"""Verify the contents of an image shard: the tar and the parquet match in members, offsets and bytes."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from .. import files
from ..manifest import RunCard, ShardManifest, shard_name
from ..parquet_tables import read_table

_COLUMNS = ("key", "caption", "status", "error_class", "sha256", "bytes", "offset")


def image_faults(path: str, run: RunCard, entry: ShardManifest) -> Iterator[str]:
    """Faults in a shard whose files match its manifest byte for byte."""
    name = shard_name(entry.number, run.shard_digits)
    try:
        rows = read_table(files.join(path, f"{name}.parquet"), _COLUMNS).to_pylist()
        # Rows selected from a data set keep its order, which is that of their own input.
        yield from _row_faults(entry, rows, in_order="selection" not in run.options)
        stored = [row for row in rows if row["status"] == "success"]
        with (
            files.reading(files.join(path, f"{name}.tar")) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            yield from _tar_faults(f"{name}.tar", archive, stored)
    except (pa.ArrowException, tarfile.TarError) as problem:
        yield f"{name}: cannot be read: {problem}"


def _row_faults(entry: ShardManifest, rows: list[dict[str, Any]], in_order: bool) -> Iterator[str]:
    if len(rows) != entry.rows_in:
        yield f"{len(rows)} rows in the parquet, but the manifest says {entry.rows_in}"
    status = Counter(row["status"] for row in rows)
    if status != Counter({"success": entry.rows_out, "failed": entry.rows_rejected}):
        yield f"{dict(status)} in the parquet, but the manifest says {entry.rows_out} and {entry.rows_rejected}"
    classes = dict(Counter(row["error_class"] for row in rows if row["status"] == "failed"))
    if classes != entry.rejects:
        yield f"failures {classes} in the parquet, but the manifest says {entry.rejects}"
    keys = [row["key"] for row in rows]
    if None in keys or len(set(keys)) < len(keys) or (in_order and keys != sorted(keys)):
        yield "keys in the parquet are not unique and in order"


def _tar_faults(name: str, archive: tarfile.TarFile, stored: list[dict[str, Any]]) -> Iterator[str]:
    """The tar against the rows that refer to it, in one pass, which ends at the first mismatch."""
    for row in stored:
        wanted = ["metadata", *(["caption"] if row["caption"] is not None else [])]
        wanted += ["image"] if row["bytes"] is not None else []
        endings: list[str] = []
        for _ in wanted:
            member = _next(archive)
            if member is None:
                yield f"{name}: ends before all of {row['key']} came"
                return
            stem, _, ending = member.name.rpartition(".")
            if stem != row["key"]:
                yield f"{name}: holds {member.name}, where {row['key']} belongs"
                return
            endings.append(ending)
            content = archive.extractfile(member)
            yield from _member_faults(name, member, content.read() if content is not None else b"", row)
        if endings != sorted(endings) or sorted(map(_kind, endings)) != sorted(wanted):
            yield f"{name}: holds {', '.join(endings)} of {row['key']}, where its {', '.join(wanted)} belong"
            return
    if (more := _next(archive)) is not None:
        yield f"{name}: holds {more.name}, where its end belongs"


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    found = archive.next()
    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member
    return found


def _kind(ending: str) -> str:
    return {"json": "metadata", "txt": "caption"}.get(ending, "image")


def _member_faults(name: str, member: tarfile.TarInfo, data: bytes, row: dict[str, Any]) -> Iterator[str]:
    kind = _kind(member.name.rpartition(".")[2])
    if kind == "caption" and data != (row["caption"] or "").encode():
        yield f"{name}: {member.name} is not the caption of its row"
    if kind != "image":
        return
    if (member.offset_data, len(data)) != (row["offset"], row["bytes"]):
        yield f"{name}: {member.name} is not at the offset, or of the length, that its row says"
    elif hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield f"{name}: {member.name}: the sha256 of its bytes is not the one in its row"
