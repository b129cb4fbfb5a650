"""The contents of a training run, and of a selection of rows: from their own records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .. import files
from ..folder_kind import DECODER, FolderKind

_STEP = "step-"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A training run. kind: prior, clip, vae, decoder-stage; empty while it is unfinished.

    data: what it was trained on. steps: of its newest checkpoint; checkpoints: steps that have one. losses: of the last
    line of each kind in metrics.jsonl ("train", "valid", "online"). record: run.json without what is above.
    """

    path: str
    said: str
    kind: str
    data: str
    steps: int
    best_step: int | None
    checkpoints: tuple[int, ...]
    losses: dict[str, dict[str, float]]
    train_rows: int | None
    valid_rows: int | None
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """A decoder: its stages, in order."""

    path: str
    said: str
    stages: tuple[RunInfo, ...]


@dataclass(frozen=True, slots=True)
class SelectionInfo:
    """A selection of rows by dedup or filter. data: of which data set. rows, kept, dropped: None in a damaged report.

    report: report.json without what is above.
    """

    path: str
    said: str
    made_by: str
    data: str
    rows: int | None
    kept: int | None
    dropped: int | None
    report: dict[str, Any]


FolderInfo = RunInfo | DecoderInfo | SelectionInfo


def describe_run(path: str, found: FolderKind) -> RunInfo | DecoderInfo:
    """Describe a run, or a decoder with its stages."""
    if found.kind == DECODER:
        stages, number = [], 1
        while files.exists(stage := files.join(path, f"stage-{number}")):
            stages.append(_run(stage, FolderKind("", f"stage {number}", facts=_record(stage))))
            number += 1
        return DecoderInfo(path, found.said, tuple(stages))
    return _run(path, found)


def describe_selection(path: str, found: FolderKind) -> SelectionInfo:
    """Describe a selection."""
    report = dict(found.facts or {})
    known = {name: report.pop(name, None) for name in ("data", "rows", "kept", "dropped")}
    rows, kept, dropped = (it if isinstance(it := known[name], int) else None for name in ("rows", "kept", "dropped"))
    made_by = found.said.rpartition(" ")[2].strip("`")
    return SelectionInfo(path, found.said, made_by, str(known["data"] or ""), rows, kept, dropped, report)


def _run(path: str, found: FolderKind) -> RunInfo:
    record = dict(found.facts or {})
    saved = files.names(files.join(path, "checkpoints"))
    steps = sorted(int(it.removeprefix(_STEP)) for it in saved if it.removeprefix(_STEP).isdecimal())
    known = {name: record.pop(name, None) for name in ("kind", "data", "best_step", "train_rows", "valid_rows")}
    data = known["data"] if isinstance(known["data"], str) else ", ".join(map(str, known["data"] or ()))
    return RunInfo(
        path=path,
        said=found.said,
        kind=str(known["kind"] or ""),
        data=data,
        steps=steps[-1] if steps else int(record.get("steps") or 0),
        best_step=known["best_step"],
        checkpoints=tuple(steps),
        losses=_losses(path),
        train_rows=known["train_rows"],
        valid_rows=known["valid_rows"],
        record=record,
    )


def _record(path: str) -> dict[str, Any]:
    try:
        content = json.loads(files.read_if_there(files.join(path, "run.json")) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _losses(path: str) -> dict[str, dict[str, float]]:
    """The numbers of the last line of each kind; torn lines are passed over."""
    found: dict[str, dict[str, float]] = {}
    for line in (files.read_if_there(files.join(path, "metrics.jsonl")) or b"").splitlines():
        try:
            content = json.loads(line)
            found[str(content["kind"])] = {
                name: float(it) for name, it in content.items() if isinstance(it, int | float) and name != "kind"
            }
        except (ValueError, KeyError, TypeError):
            continue
    return found
