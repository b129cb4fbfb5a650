"""The files of a table as a run card records them, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ... import files, manifest
from ...errors import RunMismatch
from ...manifest import RunCard
from ...read.delimited import Dialect, DialectOptions
from ...read.tables.table_file import TableFile

RETRIES = "retry"  # the folder of lists of failed rows, in an output


@dataclass(frozen=True, slots=True)
class TableInput:
    """One file as recorded in the run card. `identity` is a sha256 or an object store's etag.

    retry: see `ShardRange`; the file is then one that embedpipe wrote to the output. dialect: of a text file.
    """

    name: str
    bytes: int
    rows: int
    identity: str
    modified: str
    retry: int = 0
    dialect: Dialect | None = None


def recorded(previous: RunCard | None) -> list[TableInput]:
    """The inputs of a run card."""
    entries = [] if previous is None else previous.options["inputs"]
    return [
        TableInput(**{**entry, "dialect": Dialect(**entry["dialect"]) if entry.get("dialect") else None})
        for entry in entries
    ]


def identify(file: TableFile, rows: int, dialect: Dialect | None) -> TableInput:
    """The entry for a file as it is now. Reads all of a local one."""
    stat = files.stat(file.location)
    hashed = files.is_local(file.location) or not stat.modified
    identity = f"sha256:{files.sha256(file.location)}" if hashed else f"mark:{stat.modified}"
    return TableInput(file.name, stat.bytes, rows, identity, stat.modified, dialect=dialect)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def require_unchanged(
    out: str, found: Sequence[TableFile], known: dict[str, TableInput], asked: DialectOptions
) -> None:
    """Raise RunMismatch unless all known tables are unchanged, and `asked` says nothing else of how to read them."""
    by_name = {file.name: file for file in found}
    if missing := sorted(known.keys() - by_name.keys()):
        raise RunMismatch(
            f"{out}: was made from {_listed(known)}; {missing[0]} is not among the files given now: {_listed(by_name)}",
            "Give the same table (files beside the old ones are taken in), another output folder, or `overwrite=True`",
        )
    for name, entry in known.items():
        _require_dialect(out, by_name[name], entry, asked)
        if (problem := difference(by_name[name], entry)) is not None:
            raise RunMismatch(
                f"{out}: {problem}",
                "Put new rows in a file of their own beside it, give another folder, or `overwrite=True`",
            )


def difference(file: TableFile, entry: TableInput) -> str | None:
    """What has become of a file since it was recorded; None if it is the same. Reads all of one with a new date."""
    stat = files.stat(file.location)
    if (stat.bytes, stat.modified) == (entry.bytes, entry.modified):
        return None
    now = identify(file, entry.rows, None)
    if (now.bytes, now.identity) == (entry.bytes, entry.identity):
        return None
    return (
        f"{file.location} changed since the run began"
        f" ({entry.bytes} bytes then, {now.bytes} now, {entry.identity[:19]}… then, {now.identity[:19]}… now)"
    )


def retry_file(out: str, retry: int) -> TableFile:
    """The file with the failed rows for a round of retries."""
    return TableFile(files.join(out, RETRIES, f"{retry:05d}.parquet"), f"retry:{retry}", "parquet")


def _require_dialect(out: str, file: TableFile, entry: TableInput, asked: DialectOptions) -> None:
    if asked == DialectOptions() or file.ending == "parquet":
        return
    encoding = None if asked.encoding is None else file.contents.encoding(asked.encoding)
    quoting = None if asked.quoting == "auto" else asked.quoting
    known = entry.dialect
    for name, now in (("quoting", quoting), ("delimiter", asked.separator), ("encoding", encoding)):
        was = getattr(known, name, None)
        if now is not None and now != was and was != "":
            raise RunMismatch(
                f"{out}: {file.location} was read with {name} {was!r}, now it is {now!r}",
                manifest.SAME_OR_ANEW,
            )
