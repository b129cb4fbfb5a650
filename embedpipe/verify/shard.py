"""Verify a committed shard: its manifest against itself, the run card, and the files that exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..manifest import EMBEDDINGS, RunCard, ShardManifest, shard_name
from ..store import Contents, layout, open_format
from .accounting import account_faults


def shard_disagreements(run: RunCard, entry: ShardManifest, there: Mapping[str, int]) -> Iterator[str]:
    """Faults in counts, names and sizes. there: path → bytes of the existing files."""
    yield from _plan_faults(run, entry)
    if entry.rows_in != entry.rows_out + entry.rows_rejected + entry.rows_dropped:
        dropped = f", {entry.rows_dropped} dropped" if entry.rows_dropped else ""
        yield f"{entry.rows_in} rows in, {entry.rows_out} out and {entry.rows_rejected} rejected{dropped} do not add up"
    if sum(entry.rejects.values()) != entry.rows_rejected:
        yield f"{entry.rows_rejected} rejected, but the classes add up to {sum(entry.rejects.values())}"
    yield from account_faults(entry)
    if run.format == EMBEDDINGS:
        yield from _card_faults(run, entry)
    yield from _file_faults(run, entry, there)


def _plan_faults(run: RunCard, entry: ShardManifest) -> Iterator[str]:
    if entry.number >= len(run.plan):
        yield f"not in the plan, which ends at {len(run.plan) - 1}"
    elif run.plan[entry.number].name != entry.source.name:
        yield f"made of {entry.source.name}, but planned for {run.plan[entry.number].name}"


def _card_faults(run: RunCard, entry: ShardManifest) -> Iterator[str]:
    assert run.encoder is not None
    if entry.fingerprint != run.encoder.fingerprint():
        yield "made by another encoder than embedpipe.json names"
    elif (entry.dim, entry.dtype) != (run.encoder.dim, run.encoder.dtype):
        yield (
            f"embeddings are {entry.dim} × {entry.dtype}, but embedpipe.json says "
            f"{run.encoder.dim} × {run.encoder.dtype}"
        )
    tokens = entry.rows_out > 0 and bool(run.options.get("text_tokens"))
    if tokens and (entry.tokens is None or entry.token_width != run.token_width):
        yield f"text tokens are {entry.token_width} wide, but embedpipe.json says {run.token_width}"


def _file_faults(run: RunCard, entry: ShardManifest, there: Mapping[str, int]) -> Iterator[str]:
    listed = {record.path: record.bytes for record in entry.files}
    wanted = _wanted(run, entry)
    for path in sorted(wanted - listed.keys()):
        yield f"{path}: not listed in the manifest"
    for path in sorted(listed.keys() - wanted):
        yield f"{path}: listed in the manifest, where no such file belongs"
    for path in sorted(wanted & listed.keys()):
        if path not in there:
            yield f"{path}: missing"
        elif there[path] != listed[path]:
            yield f"{path}: {there[path]} bytes, should be {listed[path]}"


def _wanted(run: RunCard, entry: ShardManifest) -> set[str]:
    """The files of a shard with these counts."""
    if run.format != EMBEDDINGS:
        name = shard_name(entry.number, run.shard_digits)
        return {f"{name}.tar", f"{name}.parquet"}
    found: set[str] = set()
    if entry.rows_out:
        storage = open_format(str(run.options.get("format", "npy")))
        found = storage.paths(entry.number, run.shard_digits, Contents.of(run.options))
    return found | {layout.errors(entry.number, run.shard_digits)} if entry.rows_rejected else found
