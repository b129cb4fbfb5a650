"""Detect what is at a path: a data set with embedpipe's manifests, or another tool's data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import files, manifest
from ..clip_model.encoder_card import EncoderCard
from ..errors import DatasetError, InputError
from ..folder_kind import require_embeddings
from ..manifest import EMBEDDINGS, EXPORT_RECORD, RunCard, ShardManifest
from ..store import ShardReader, open_format
from ..store.foreign.base import Foreign, read_note
from ..store.foreign.reader import open_foreign


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened data set before any row is read."""

    run: RunCard
    card: EncoderCard
    manifests: Sequence[ShardManifest]
    reader: ShardReader


def open_at(path: str, foreign: Foreign | None) -> Opened:
    """Open the data set at `path`; `foreign` describes another tool's data set.

    Raises InputError, DatasetError if it is missing, damaged, or made by two encoders.
    """
    if not files.exists(path):
        raise InputError(f"{path}: no such folder", "Check the path")
    if foreign is None:
        run = manifest.read_run(path)
        if run is not None and run.format == EMBEDDINGS:
            return _ours(path)
        require_embeddings(path)
    exported = manifest.read_run(files.join(path, EXPORT_RECORD))
    recorded = exported.encoder if exported is not None and exported.format == manifest.EXPORT else None
    run, manifests, reader = open_foreign(path, foreign or read_note(path), recorded)
    assert run.encoder is not None
    return Opened(run, run.encoder, manifests, reader)


def _ours(path: str) -> Opened:
    run = manifest.require_run(path, EMBEDDINGS)
    if run.encoder is None:
        raise DatasetError(f"{path}: embedpipe.json names no encoder", "Run `embedpipe encode` again")
    manifests = tuple(manifest.read_manifests(path, run.shard_digits))
    _require_all(path, run, manifests)
    for entry in manifests:
        if entry.fingerprint != run.encoder.fingerprint():
            raise DatasetError(f"{path}: shard {entry.number} was made by another encoder", "Run `embedpipe verify`")
    return Opened(run, run.encoder, manifests, open_format(str(run.options.get("format", "npy"))).reader)


def _require_all(path: str, run: RunCard, manifests: Sequence[ShardManifest]) -> None:
    """Raise DatasetError if a committed shard is lost: renumbered rows would invalidate an index, for example."""
    lost = manifest.lost_numbers(run, (entry.number for entry in manifests))
    if lost:
        raise DatasetError(
            f"{path}: manifest/{manifest.shard_name(lost[0], run.shard_digits)}.json: missing, "
            f"{len(lost)} of {len(run.plan)} shards are lost",
            "The command that made it makes them again; to go without them, run "
            f"`embedpipe.verify({path!r}, repair=True)`",
        )
