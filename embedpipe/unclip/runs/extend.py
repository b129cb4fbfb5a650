"""Whether a run may be continued with more steps, or with data that grew; anything else that differs is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle2_core.training import OptimConfig, TrainConfig
from dalle2_core.training.checkpoint import identity_changes, may_change
from dalle2_core.training.loop import run_identity
from dalle2_core.training.optim import learning_rate
from embedpipe import files
from embedpipe.errors import RunMismatch

from .record import json_object
from .resume import NameOf, newest_checkpoint, option_of, refuse_changes
from .trained_rows import read_trained_rows

logger = logging.getLogger("embedpipe")

# What follows from the training rows, and so differs when they grow.
OF_THE_DATA = frozenset({"train_rows", "order_sha256", "pictures"})


Describe = Callable[[dict[str, Any]], dict[str, Any]]
"""The facts of a run's record → what must stay the same for it to be continued."""


@dataclass(frozen=True, slots=True)
class Extension:
    """grown: see `dalle2_core.training.Run`. said: what is extended, in plain words; empty for a run as it was."""

    grown: frozenset[str] = frozenset()
    said: tuple[str, ...] = ()


def extension(
    folder: str,
    describes: Mapping[str, Any],
    train: TrainConfig | None,
    optim: OptimConfig,
    marks: Callable[[], np.ndarray],
    name_of: NameOf = option_of,
    of_record: Describe | None = None,
) -> Extension:
    """How the run in `folder`, any fsspec url, is extended by the run that is described; nothing for a new one.

    train: None for a prior in closed form, which has a record instead of checkpoints; of_record: what describes it of
    that. marks: of the training rows now, see `row_marks`; asked for where they seem to have grown. Raises RunMismatch
    for another run, for rows that are gone, and for more rows without steps that are left to train on them.
    """
    before, done, planned = _recorded(folder, of_record if train is None else None)
    if before is None:
        return Extension()
    changes = identity_changes(before, dict(describes) if train is None else run_identity(describes, train, optim))
    of_data = OF_THE_DATA & changes.keys()
    grown = of_data if of_data and _have_grown(folder, marks()) else frozenset()
    refused = {key: it for key, it in changes.items() if not may_change(key, *it, grown)}
    if refused:
        refuse_changes(folder, refused, name_of)
    if grown and train is not None and done >= train.steps:
        raise RunMismatch(
            f"{folder}: all {done:,} steps were done, and the data have grown since",
            f"Give more `steps` than {done} to go on with the rows that came, or another output folder",
        )
    return Extension(grown, (*_steps_said(planned, done, train, optim), *_rows_said(changes, grown)))


def _recorded(folder: str, of_record: Describe | None) -> tuple[dict[str, Any] | None, int, int]:
    """The identity of the newest checkpoint, its step and the run's steps in all.

    Of a closed form, what describes it of its record.
    """
    if of_record is not None:
        content = json_object(files.join(folder, "run.json"))
        return (None if content is None else of_record(content)), 0, 0
    found = newest_checkpoint(folder)
    if found is None:
        return None, 0, 0
    identity, numbers = found["identity"], found["numbers"]
    total = numbers.get("total_steps") or identity.get("train", {}).get("steps") or numbers["step"]
    return identity, numbers["step"], total


def _have_grown(folder: str, now: np.ndarray) -> bool:
    """Whether all rows that the run trained on are still there, and others besides."""
    before = read_trained_rows(folder)
    return before is not None and len(np.unique(now)) > len(before) and bool(np.isin(before, now).all())


def _steps_said(planned: int, done: int, train: TrainConfig | None, optim: OptimConfig) -> list[str]:
    """How many more steps, and what that does to the learning rate."""
    if train is None or train.steps <= planned:
        return []
    said = f"{planned:,} → {train.steps:,} steps, from step {done:,} on"
    if optim.schedule == "constant":
        return [f"{said}, at the same constant rate: as one run of that length"]
    was, goes_on = (learning_rate(max(1, done), steps, optim) for steps in (planned, train.steps))
    return [
        f"{said}; the {optim.schedule} schedule is that of {train.steps:,} steps from here on, so the rate goes from "
        f"{was:.3g} to {goes_on:.3g}: not the same as one run of that length"
    ]


def _rows_said(changes: Mapping[str, tuple[Any, Any]], grown: frozenset[str]) -> list[str]:
    if not grown:
        return []
    if "train_rows" in changes:
        before, now = changes["train_rows"]
        return [f"{before:,} → {now:,} training rows; held-out rows stay held out"]
    return ["other training rows have come; held-out rows stay held out"]


def history_of(folder: str, found: Extension, of_record: Describe, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a prior in closed form: what its record holds, and how it is extended now. Of others see `TrainState`."""
    before = json_object(files.join(folder, "run.json")) or {}
    changes = identity_changes(of_record(before), of_record(facts)) if found.grown else {}
    told = [f"{name}: {was} → {now}" for name, (was, now) in changes.items()]
    return [*before.get("history", ()), *([{"step": 0, "changes": told}] if told else [])]


def say(folder: str, found: Extension) -> None:
    """Log how a run is extended."""
    if found.said:
        logger.warning("%s: goes on with %s", folder, "; ".join(found.said))
