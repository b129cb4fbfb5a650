"""Run cards and manifests: one `embedpipe.json` per output, one manifest per committed shard.

    OUT/embedpipe.json         RunCard: what the output is, the options that shape it, the plan
    OUT/manifest/00000.json    ShardManifest: the commit marker of shard 00000, written last

A shard without a manifest does not exist for any reader. Readers list manifests, never data files. Both documents
carry their own checksum, see `checksummed_json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pydantic

from . import files
from .accounts import Accounts, total
from .checksummed_json import Unsound, dump, load
from .clip_model.encoder_card import EncoderCard
from .errors import DatasetError, InputError, RunMismatch
from .lock import require_held
from .progress import CutCaptions
from .redact import redacted
from .types import SourceShard

FORMAT_VERSION = 1
EMBEDDINGS = "embedpipe/embeddings"
IMAGE_SHARDS = "embedpipe/image-shards"
EXPORT = "embedpipe/export"
EXPORT_RECORD = ".embedpipe"  # the folder in an export with its run card

# The remedy where options or inputs of an output have changed, and its command can overwrite it.
SAME_OR_ANEW = "Give the same as before, another output folder, or `overwrite=True` to begin again"

RUN_FILE = "embedpipe.json"
_MANIFESTS = "manifest"


@dataclass(frozen=True, slots=True)
class MergedPart:
    """A data set that was merged into another one: its location, and the prefix of its shards' new names.

    From its own run card: the location of its input, its options, and the data sets merged into it, if any.
    """

    path: str
    prefix: str
    source: str
    options: dict[str, Any]
    merged: tuple[MergedPart, ...] = ()


@dataclass(frozen=True, slots=True)
class RunCard:
    """`embedpipe.json`: `options` determine the data; `plan[i]` is the input of shard i and only grows.

    `columns` maps each metadata column to its Arrow type name, fixed when the output is created so that all shards
    agree. `source` is the location of the input, for commands that read it again; nothing depends on it, and it is
    written without secrets. `token_width` is that of the stored token states, None if there are none. `pending`: the
    planned shards that were not committed when this was last written, and so may lack a manifest; None if unknown
    (written by an older version). A manifest that is missing and not pending was lost. `merged`: the data sets merged
    into this one, if any. `listing`: the files of the input's folder when the plan was last made; None if it is no
    folder, or in output of older versions.
    """

    format: str
    options: dict[str, Any]
    plan: tuple[SourceShard, ...]
    columns: dict[str, str] = field(default_factory=dict)
    source: str = ""
    encoder: EncoderCard | None = None
    shard_digits: int = 5
    versions: dict[str, str] = field(default_factory=dict)
    token_width: int | None = None
    pending: tuple[int, ...] | None = None
    merged: tuple[MergedPart, ...] = ()
    listing: Accounts | None = None
    format_version: int = FORMAT_VERSION

    @property
    def dated(self) -> bool:
        """Whether version 0.1 encoded it: see `EncoderCard.dated`."""
        return self.encoder is not None and self.encoder.dated


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a shard: its path inside the output, size and hex sha256.

    `ends_sha256` hashes its first and last 64 KiB, for readers that cannot hash the whole file each time: enough to
    detect that it is not the file that was written. Empty if not recorded.
    """

    path: str
    bytes: int
    sha256: str
    ends_sha256: str = ""


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """The commit record of one shard.

    rows_in = rows_out + rows_rejected + rows_dropped: a dropped row is a valid one that `filter` or `dedup` left out of
    its output. `rejects` counts by error class. `retried` (image shards): rows that failed in an earlier shard and are
    retried in this one, counted by the class of the earlier failure. `source_sha256` hashes the input shard's bytes.
    `fingerprint` is the encoder card's (embeddings) or empty. `tokens` and `token_width`: the total number of token
    states, and their width; None if not stored. `captions_cut` and `tokens_cut`: the number of captions longer than the
    model's context, and of their tokens that were not read; None without captions, if the tokenizer cannot tell, or in
    output of version 0.1. `accounts`: everything in the input shard, used or passed over; None if not
    recorded (output of older versions, or not made from an input shard). `timing_s` is the one field that differs
    between two runs over the same input.
    """

    number: int
    source: SourceShard
    source_sha256: str
    rows_in: int
    rows_out: int
    rows_rejected: int
    rejects: dict[str, int]
    files: tuple[FileRecord, ...]
    dim: int | None = None
    dtype: str | None = None
    fingerprint: str = ""
    tokens: int | None = None
    token_width: int | None = None
    retried: dict[str, int] = field(default_factory=dict)
    rows_dropped: int = 0
    captions_cut: int | None = None
    tokens_cut: int | None = None
    accounts: Accounts | None = None
    timing_s: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def bytes(self) -> int:
        """Total size of the shard's files."""
        return sum(record.bytes for record in self.files)

    def cut(self) -> CutCaptions:
        """The truncated captions, among the rows where it is known."""
        if self.captions_cut is None or self.tokens_cut is None:
            return CutCaptions()
        return CutCaptions(self.rows_out, self.captions_cut, self.tokens_cut)

    def file(self, path: str) -> FileRecord | None:
        """The record of the file at that path inside the output, None if the shard has none."""
        return next((record for record in self.files if record.path == path), None)


def total_accounts(manifests: Iterable[ShardManifest]) -> Accounts | None:
    """What became of everything in the input; None if it is not recorded. Rounds of retries are no input."""
    return total(*(entry.accounts for entry in manifests if not entry.retried))


_T = TypeVar("_T", RunCard, ShardManifest)


_ADAPTERS: dict[type[Any], pydantic.TypeAdapter[Any]] = {
    RunCard: pydantic.TypeAdapter(RunCard),
    ShardManifest: pydantic.TypeAdapter(ShardManifest),
}


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals over shards, with each row counted once: a retried row counts by its last outcome."""

    rows: int
    succeeded: int
    failed: dict[str, int]
    retried: int


def totals(manifests: Iterable[ShardManifest]) -> Totals:
    """Add up committed shards."""
    rows = succeeded = retried = 0
    failed: dict[str, int] = {}
    for entry in manifests:
        again = sum(entry.retried.values())
        rows += entry.rows_in - again
        succeeded += entry.rows_out
        retried += again
        for name in entry.rejects.keys() | entry.retried.keys():
            failed[name] = failed.get(name, 0) + entry.rejects.get(name, 0) - entry.retried.get(name, 0)
    return Totals(rows, succeeded, {name: count for name, count in sorted(failed.items()) if count > 0}, retried)


def _dump(value: RunCard | ShardManifest) -> bytes:
    # Keys are not sorted: the order of `columns` is that of the metadata files.
    return dump(dataclasses.asdict(_without_secrets(value) if isinstance(value, RunCard) else value))


def _without_secrets(run: RunCard) -> RunCard:
    return dataclasses.replace(run, source=redacted(run.source), merged=tuple(map(_part_without_secrets, run.merged)))


def _part_without_secrets(part: MergedPart) -> MergedPart:
    inner = tuple(map(_part_without_secrets, part.merged))
    return dataclasses.replace(part, path=redacted(part.path), source=redacted(part.source), merged=inner)


def _load(kind: type[_T], location: str, data: bytes) -> _T:
    try:
        document = load(data, [field.name for field in dataclasses.fields(kind)])
    except Unsound as problem:
        raise DatasetError(f"{location}: damaged: {problem}", _REMEDIES[kind]) from problem
    version = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DatasetError(
            f"{location}: format version {version}; this embedpipe reads up to {FORMAT_VERSION}", "Upgrade embedpipe"
        )
    try:
        value: _T = _ADAPTERS[kind].validate_python(document)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{location}: damaged: {where}: {first['msg']}", _REMEDIES[kind]) from problem
    return value


_REMEDIES: dict[type[Any], str] = {
    RunCard: "Restore it from a copy, or make the output again in another folder",
    ShardManifest: "`embedpipe.verify(repair=True)` drops the shard, and the command that made it makes it again",
}


def read_run(root: str) -> RunCard | None:
    """The run card of an output, or None if there is none. Raises DatasetError if it is damaged."""
    location = files.join(root, RUN_FILE)
    data = files.read_if_there(location)
    return _load(RunCard, location, data) if data is not None else None


def require_run(root: str, format: str) -> RunCard:
    """The run card of an output of the given format; a clear error if `root` has none."""
    if not files.exists(root):
        raise InputError(f"{root}: no such folder", "Check the path")
    run = read_run(root)
    made_by = {EMBEDDINGS: "`embedpipe encode`", IMAGE_SHARDS: "`embedpipe fetch`"}[format]
    if run is None:
        raise DatasetError(f"{root}: no {RUN_FILE} in it", f"Give a folder written by {made_by}")
    if run.format != format:
        raise DatasetError(f"{root}: holds {run.format}, not {format}", f"Give a folder written by {made_by}")
    return run


def with_pending(root: str, run: RunCard) -> RunCard:
    """`run` with `pending` updated to the planned shards without a manifest."""
    committed = committed_numbers(root)
    return dataclasses.replace(run, pending=tuple(sorted(set(range(len(run.plan))).difference(committed))))


def is_begun(root: str) -> bool:
    """Whether there is a run card, valid or not."""
    return files.exists(files.join(root, RUN_FILE))


def begin_run(root: str, run: RunCard) -> bool:
    """Write `embedpipe.json` if there is none; returns False if another process was faster."""
    return files.create(files.join(root, RUN_FILE), _dump(run))


def settle(root: str) -> None:
    """Update `pending` at the end of a run, so that the later loss of a manifest is detected. Raises OutputBusy."""
    require_held(root)
    run = read_run(root)
    if run is not None and (settled := with_pending(root, run)) != run:
        write_run(root, settled)


def lost_numbers(run: RunCard, committed: Iterable[int]) -> list[int]:
    """Planned shards without a manifest that had one when `embedpipe.json` was last written."""
    if run.pending is None:
        return []
    return sorted(set(range(len(run.plan))).difference(committed, run.pending))


def write_run(root: str, run: RunCard) -> None:
    """Write or replace `embedpipe.json` atomically. Raises OutputBusy if the lock of `root` was taken away."""
    require_held(root)
    files.write_bytes(files.join(root, RUN_FILE), _dump(run))


def retract_run(root: str) -> None:
    """Remove `embedpipe.json`, so that the folder is no longer an output. Its shards must be retracted first."""
    files.remove(files.join(root, RUN_FILE))


def shard_name(number: int, digits: int) -> str:
    """The zero-padded number in all file names of a shard."""
    return f"{number:0{digits}d}"


def _manifest_path(root: str, name: str) -> str:
    return files.join(root, _MANIFESTS, f"{name}.json")


def commit(root: str, manifest: ShardManifest, digits: int) -> None:
    """Commit a shard by writing its manifest, after all its other files. Raises OutputBusy as `write_run` does."""
    require_held(root)
    files.write_bytes(_manifest_path(root, shard_name(manifest.number, digits)), _dump(manifest))


def retract(root: str, number: int, digits: int) -> None:
    """Retract a shard by removing its manifest; data files may be removed later."""
    files.remove(_manifest_path(root, shard_name(number, digits)))


def committed_numbers(root: str) -> list[int]:
    """Numbers of the committed shards, ascending, from one listing and without opening them."""
    stems = (name.removesuffix(".json") for name in files.names(files.join(root, _MANIFESTS), ".json"))
    return sorted({int(stem) for stem in stems if stem.isdecimal()})


def read_manifest(root: str, number: int, digits: int) -> ShardManifest:
    """One shard's manifest. Raises DatasetError when damaged, InputError when the shard is not committed."""
    location = _manifest_path(root, shard_name(number, digits))
    manifest = _load(ShardManifest, location, files.read_bytes(location))
    if manifest.number != number:
        raise DatasetError(f"{location}: says it is shard {manifest.number}", _REMEDIES[ShardManifest])
    return manifest


def files_are_there(root: str, manifest: ShardManifest) -> bool:
    """Whether all files of a shard exist with the recorded sizes."""
    return all(files.has_size(files.join(root, record.path), record.bytes) for record in manifest.files)


def read_manifests(root: str, digits: int, numbers: Iterable[int] | None = None) -> Iterator[ShardManifest]:
    """All committed manifests in ascending order, or those of `numbers` in the given order."""
    wanted = committed_numbers(root) if numbers is None else numbers
    yield from files.each(root, lambda number: read_manifest(root, number, digits), wanted)


def refuse_difference(
    root: str,
    old: dict[str, Any],
    new: dict[str, Any],
    what: str,
    remedy: str = "Give the same as before, or another output folder",
) -> None:
    """Raise RunMismatch naming each entry in which two (nested) dicts differ; return if they are equal."""
    found = [f"{name} was {before}, now {now}" for name, before, now in run_differences(old, new)]
    if found:
        raise RunMismatch(f"{root}: was made with another {what}: {'; '.join(found)}", remedy)


def run_differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, value in `old`, value in `new`) of each entry in which two (nested) dicts differ, as short texts."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from run_differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif _plain(old) != _plain(new):
        yield path, _short(old), _short(new)


def _plain(value: Any) -> Any:
    # JSON has no tuples: convert them so that values read back compare equal to those written.
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = "not set" if value in (None, [], {}, "") else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}…{text[-18:]}"
