"""The run record of an export, in a hidden folder that the target programs ignore.

OUT/.embedpipe/embedpipe.json        what was exported to what, under which options
OUT/.embedpipe/manifest/00000.json   commit marker of part 00000; the paths of its files are below OUT
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import files, manifest
from ..errors import RunMismatch
from ..load import EmbeddingDataset
from ..load.split import CONTENT, KEY
from ..manifest import EXPORT, EXPORT_RECORD, FileRecord, RunCard, ShardManifest
from .base import PlannedPart

_DIGITS = 5
_REMEDY = "Give another output folder, or remove this one"


def state(out: str) -> str:
    """The hidden folder of an output."""
    return files.join(out, EXPORT_RECORD)


def export_card(dataset: EmbeddingDataset, plan: Sequence[PlannedPart], options: dict[str, Any]) -> RunCard:
    """The run card of an export: `plan` is its parts."""
    return RunCard(
        EXPORT,
        options,
        tuple(part.source for part in plan),
        columns=dict(dataset.run.columns),
        source=files.absolute(dataset.path),
        encoder=dataset.card,
    )


def split_rule(out: str) -> str:
    """What the splits of an export hash, see `embedpipe.load.splits`: one of an earlier version keeps to the key."""
    found = manifest.read_run(state(out))
    earlier = found is not None and bool(found.options.get("splits")) and "split_by" not in found.options
    return KEY if earlier else CONTENT


def refuse_other_export(out: str, wanted: RunCard) -> None:
    """Raise RunMismatch unless `out` is empty or was started by the same export."""
    found = manifest.read_run(state(out))
    if found is None:
        others = [name for name in files.names(out) if not name.startswith(".")] if files.exists(out) else []
        if others:
            shown = ", ".join(others[:3]) + " …" * (len(others) > 3)
            raise RunMismatch(f"{out}: holds something else ({shown})", "Give a new or empty output folder")
        return
    assert wanted.encoder is not None
    if found.format != EXPORT or found.encoder is None:
        raise RunMismatch(f"{out}: holds {found.format}, not {EXPORT}", _REMEDY)
    manifest.refuse_difference(out, found.options, wanted.options, "set of options", _REMEDY)
    manifest.refuse_difference(out, found.encoder.facts(), wanted.encoder.facts(), "encoder", _REMEDY)
    if found.plan != wanted.plan:
        where = _first_difference(found.plan, wanted.plan)
        raise RunMismatch(f"{out}: was exported from other rows, or another state of the data set ({where})", _REMEDY)


def _first_difference(old: Sequence[Any], new: Sequence[Any]) -> str:
    for before, after in zip(old, new, strict=False):
        if before.name != after.name:
            return f"{before.name} then, {after.name} now"
        if before != after:
            return f"{before.name} differs"
    return f"{len(old)} shards then, {len(new)} now"


def resume(out: str, wanted: RunCard, folders: Sequence[str]) -> dict[int, ShardManifest]:
    """Start or resume: the complete parts, by number. Call it with the lock held, after `refuse_other_export`."""
    for folder in (EXPORT_RECORD, f"{EXPORT_RECORD}/manifest", *folders):
        files.sweep_temporaries(files.join(out, folder) if folder else out)
    manifest.write_run(state(out), wanted)
    whole = committed_parts(out)
    for number in manifest.committed_numbers(state(out)):
        if number not in whole:
            manifest.retract(state(out), number, _DIGITS)
    return whole


def committed_parts(out: str) -> dict[int, ShardManifest]:
    """The parts whose files exist with the recorded sizes, by number."""
    entries = manifest.read_manifests(state(out), _DIGITS)
    return {entry.number: entry for entry in entries if manifest.files_are_there(out, entry)}


def commit_export(out: str, part: PlannedPart, written: tuple[FileRecord, ...]) -> ShardManifest:
    """Record a part as committed; its files are in place."""
    entry = ShardManifest(part.number, part.source, part.source.modified, part.rows, part.rows, 0, {}, written)
    manifest.commit(state(out), entry, _DIGITS)
    return entry
