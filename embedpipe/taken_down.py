"""What was taken out of an output, kept as digests: enough to refuse it again, too little to tell what it was.

    OUT/takedowns/00001.parquet      the rows of one takedown, written before the first of them goes
    OUT/takedowns/00001.json         when it began, and when it was finished; written anew at its end
    OUT/takedowns/00001/00003-….json  of image shards: how the tar of shard 3 changed

Digests are sha256, in hex: of the url in one spelling, of the stored image's bytes, of the key with its input shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq

from . import files, manifest
from .errors import DatasetError
from .parquet_tables import read_table

FOLDER = "takedowns"
STAGING = ".takedown"
ERROR_CLASS = "taken_down"
_SCHEMA = pa.schema([(name, pa.string()) for name in ("uid", "url_sha256", "sha256", "key_sha256")])
_KEPT = "%/:?#[]@!$&'()*+,;=~"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class TakenRow:
    """One row that went. uid: see `embedpipe.uid`; sha256: of the stored image; None where the row had none."""

    uid: str | None
    url_sha256: str | None
    sha256: str | None
    key_sha256: str | None


@dataclass(frozen=True, slots=True)
class RewrittenTar:
    """A tar that lost samples: its sha256 before and after, and the positions of those samples among all of it.

    members: how many files of the tar they were.
    """

    number: int
    before: str
    after: str
    removed: tuple[int, ...]
    members: int


@dataclass(frozen=True, slots=True)
class TakedownRecord:
    """One takedown. began, finished: ISO times; finished None while it is under way."""

    number: int
    began: str
    finished: str | None
    rows: tuple[TakenRow, ...] = ()
    tars: tuple[RewrittenTar, ...] = ()


@dataclass(frozen=True, slots=True)
class TakenDown:
    """Everything that was taken out of one output."""

    urls: frozenset[str]
    contents: frozenset[str]
    keys: frozenset[str]

    def has_url(self, url: str | None) -> bool:
        """Whether a row with that url went."""
        return bool(url) and url_digest(str(url)) in self.urls

    def has_row(self, source: str, key: str, url: str | None, sha256: str | None) -> bool:
        """Whether the sample of that key of an input shard went, or one of that url or with those bytes."""
        return self.has_url(url) or sha256 in self.contents or key_digest(source, key) in self.keys


def canonical_url(url: str) -> str:
    """One spelling of a url: trimmed, without fragment and default port, host in lower case, percent-encoded."""
    text = "".join(url.split("\n")).strip().partition("#")[0]
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    host = parts.netloc.lower().removesuffix(_DEFAULT_PORTS.get(parts.scheme, ":"))
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            host = quote(host)
    path = parts.path or ("/" if host else "")
    return urlunsplit((parts.scheme, host, quote(path, safe=_KEPT), quote(parts.query, safe=_KEPT), ""))


def url_digest(url: str) -> str:
    """The digest of a url, whatever its spelling."""
    return hashlib.sha256(canonical_url(url).encode("utf-8", "surrogatepass")).hexdigest()


def key_digest(source: str, key: str) -> str:
    """The digest of a key of the input shard `source`."""
    return hashlib.sha256(f"{source}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()


def read_taken_down(out: str) -> TakenDown | None:
    """What was taken out of `out`; None if nothing ever was."""
    records = read_records(out)
    if not records:
        return None
    rows = [row for record in records for row in record.rows]
    return TakenDown(
        frozenset(row.url_sha256 for row in rows if row.url_sha256),
        frozenset(row.sha256 for row in rows if row.sha256),
        frozenset(row.key_sha256 for row in rows if row.key_sha256),
    )


def refuse_interrupted(out: str) -> None:
    """Raise DatasetError if a takedown was ended while it replaced a shard of `out`, which may now look missing."""
    if manifest.committed_numbers(files.join(out, STAGING)):
        raise DatasetError(
            f"{out}: a takedown was interrupted while it replaced a shard there",
            "Run the same takedown again, which finishes it, before anything else writes there",
        )


def read_records(out: str) -> list[TakedownRecord]:
    """The takedowns of an output, in their order."""
    folder = files.join(out, FOLDER)
    stems = [name.removesuffix(".parquet") for name in files.names(folder, ".parquet")]
    return [_read(folder, stem) for stem in stems if stem.isdecimal()]


def _read(folder: str, stem: str) -> TakedownRecord:
    table = read_table(files.join(folder, f"{stem}.parquet"), schema=_SCHEMA)
    rows = tuple(TakenRow(**row) for row in table.to_pylist())
    times = json.loads(files.read_if_there(files.join(folder, f"{stem}.json")) or b"{}")
    place = files.join(folder, stem)
    tars = [json.loads(files.read_bytes(files.join(place, name))) for name in files.names(place, ".json")]
    rewritten = tuple(RewrittenTar(**{**tar, "removed": tuple(tar["removed"])}) for tar in tars)
    return TakedownRecord(int(stem), times.get("began", ""), times.get("finished"), rows, rewritten)


def write_rows(out: str, record: TakedownRecord) -> None:
    """Write the rows of a takedown, before the first of them goes: from then on they are refused."""
    _write_times(out, record, {})
    columns = [[getattr(row, name) for row in record.rows] for name in _SCHEMA.names]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=_SCHEMA), sink, compression="zstd")
    files.write_bytes(_place(out, record.number, ".parquet"), sink.getvalue().to_pybytes())


def finish_record(out: str, record: TakedownRecord, counts: dict[str, Any]) -> None:
    """Note that a takedown is finished, with what it did."""
    _write_times(out, record, counts)


def write_tar(out: str, number: int, tar: RewrittenTar) -> None:
    """Note how a tar changes, before it does."""
    name = f"{tar.number:05d}-{tar.before[:12]}.json"
    files.write_bytes(files.join(_place(out, number, ""), name), json.dumps(dataclasses.asdict(tar)).encode())


def changes_between(records: Sequence[TakedownRecord], number: int, before: str, now: str) -> list[RewrittenTar]:
    """How the tar of a shard came from one sha256 to another, change by change; empty if it did not by takedowns.

    A note of a change that was interrupted before it was made leads nowhere.
    """
    notes = {tar.before: tar for record in records for tar in record.tars if tar.number == number}
    found: list[RewrittenTar] = []
    while before != now and before in notes and len(found) < len(notes):
        found.append(notes[before])
        before = notes[before].after
    return found if before == now else []


def unfinished(records: Iterable[TakedownRecord]) -> list[TakedownRecord]:
    """Those that were interrupted."""
    return [record for record in records if record.finished is None]


def _write_times(out: str, record: TakedownRecord, counts: dict[str, Any]) -> None:
    document = {"began": record.began, "finished": record.finished, **counts}
    files.write_bytes(_place(out, record.number, ".json"), (json.dumps(document, indent=1) + "\n").encode())


def _place(out: str, number: int, ending: str) -> str:
    return files.join(out, FOLDER, f"{number:05d}{ending}")
