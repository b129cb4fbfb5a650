"""Is an output whole? Every manifest, size, checksum, count and fingerprint, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import files, manifest
from .errors import DatasetError, InputError
from .manifest import EMBEDDINGS, IMAGE_SHARDS, RunCard, ShardManifest
from .progress import Listener, Progress, silent
from .ragged import RaggedRows
from .room import callable_as
from .store import layout, open_format


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with one shard (or, number None, with the output as a whole)."""

    number: int | None
    name: str
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found. missing: planned shards that are not committed (not a fault: the run may still go on)."""

    path: str
    format: str
    planned: int
    committed: int
    missing: int
    rows: int
    rejected: int
    bytes: int
    faults: tuple[Fault, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong with what is committed."""
        return not self.faults


def verify(path: str, listen: Listener = silent) -> VerifyReport:
    """Check an output of `encode` or `fetch`. Raises InputError or DatasetError only when it is no such thing."""
    if not files.exists(path):
        raise InputError(f"{path}: no such folder", "Check the path")
    run = manifest.read_run(path)
    if run is None:
        raise DatasetError(f"{path}: no embedpipe.json in it", "Give a folder written by `embedpipe encode` or `fetch`")
    numbers = manifest.committed_numbers(path)
    listen(Progress(planned=len(numbers)))
    entries: list[ShardManifest] = []
    faults: list[Fault] = []
    for number in numbers:
        try:
            entry = manifest.read_manifest(path, number, run.shard_digits)
        except (DatasetError, InputError) as problem:
            faults.append(Fault(number, "", str(problem)))
            continue
        entries.append(entry)
        faults.extend(Fault(number, entry.source.name, what) for what in _shard_faults(path, run, entry))
        listen(Progress(rows=entry.rows_out, tasks=1))
    faults.extend(_plan_faults(run, entries))
    return VerifyReport(
        path=path,
        format=run.format,
        planned=len(run.plan),
        committed=len(numbers),
        missing=len(set(range(len(run.plan))) - set(numbers)),
        rows=sum(entry.rows_out for entry in entries),
        rejected=sum(entry.rows_rejected for entry in entries),
        bytes=sum(entry.bytes() for entry in entries),
        faults=tuple(faults),
    )


def _plan_faults(run: RunCard, entries: list[ShardManifest]) -> Iterator[Fault]:
    for entry in entries:
        if entry.number >= len(run.plan):
            yield Fault(entry.number, entry.source.name, f"not in the plan, which ends at {len(run.plan) - 1}")
        elif run.plan[entry.number].name != entry.source.name:
            planned = run.plan[entry.number].name
            yield Fault(entry.number, entry.source.name, f"made of {entry.source.name}, but planned for {planned}")


def _shard_faults(path: str, run: RunCard, entry: ShardManifest) -> Iterator[str]:
    """What is wrong with one committed shard."""
    if entry.rows_in != entry.rows_out + entry.rows_rejected + entry.rows_dropped:
        dropped = f", {entry.rows_dropped} dropped" if entry.rows_dropped else ""
        yield f"{entry.rows_in} rows in, {entry.rows_out} out and {entry.rows_rejected} rejected{dropped} do not add up"
    if sum(entry.rejects.values()) != entry.rows_rejected:
        yield f"{entry.rows_rejected} rejected, but the classes add up to {sum(entry.rejects.values())}"
    listed = layout.errors(entry.number, run.shard_digits) in {record.path for record in entry.files}
    if run.format == EMBEDDINGS and listed != bool(entry.rows_rejected):
        yield f"{entry.rows_rejected} rejected, but {'a' if listed else 'no'} file of rejects is listed"
    damaged = [fault for record in entry.files if (fault := _file_fault(path, record))]
    yield from damaged
    if run.format == EMBEDDINGS and not damaged:
        yield from _embedding_faults(path, run, entry)


def _file_fault(path: str, record: manifest.FileRecord) -> str | None:
    location = files.join(path, record.path)
    try:
        size = files.stat(location).bytes
        if size != record.bytes:
            return f"{record.path}: {size} bytes, should be {record.bytes}"
        if files.sha256(location) != record.sha256:
            return f"{record.path}: the checksum does not match: its bytes were changed"
    except InputError:
        return f"{record.path}: missing"
    except OSError as problem:
        return f"{record.path}: cannot be read: {problem}"
    return None


def _embedding_faults(path: str, run: RunCard, entry: ShardManifest) -> Iterator[str]:
    if run.encoder is None or entry.fingerprint != run.encoder.fingerprint():
        yield "made by another encoder than embedpipe.json names"
        return
    if not entry.rows_out:
        return
    reader = open_format(str(run.options.get("format", "npy"))).reader
    try:
        for option, modality in (("images", "image"), ("texts", "text")):
            array = reader.embeddings(path, entry, modality, run.shard_digits)
            if run.options.get(option, True) and array is None:
                yield f"no {modality} embeddings"
            elif array is not None and str(array.dtype) != entry.dtype:
                yield f"{modality} embeddings are {array.dtype}, should be {entry.dtype}"
        yield from _token_faults(run, entry, reader.text_tokens(path, entry, run.shard_digits))
        reader.metadata(path, entry, run.shard_digits, ("key",))
    except (DatasetError, InputError) as problem:
        yield str(problem)


def _token_faults(run: RunCard, entry: ShardManifest, tokens: RaggedRows | None) -> Iterator[str]:
    if tokens is None:
        if run.options.get("text_tokens"):
            yield "no text tokens"
        return
    if str(tokens.values.dtype) != entry.dtype:
        yield f"text tokens are {tokens.values.dtype}, should be {entry.dtype}"
    if tokens.width != run.token_width:
        yield f"text tokens are {tokens.width} wide, but embedpipe.json says {run.token_width}"


KINDS = {EMBEDDINGS: "embedding data set", IMAGE_SHARDS: "image shards"}

callable_as(__name__, ":verify")
