"""A training that would go on with another one's checkpoints is refused, naming what differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dalle2_core.errors import AnotherRun
from dalle2_core.training.checkpoint import step_name, steps_named
from embedpipe import files
from embedpipe.manifest import refuse_difference

from .record import RUN_FILE, json_object, read_run_record

NameOf = Callable[[str], str]

_WORDS = {
    "split.column": "`split_column`",
    "split.valid_share": "`valid_share`",
    "rows.normalise": "`normalise`",
    "rows.drop_nonfinite": "`drop_nonfinite`",
    "fingerprint": "the encoder of EMB (fingerprint)",
    "train_rows": "the number of training rows",
    "order_sha256": "the order of the images in DATA (sha256)",
    "pictures": "the pictures of DATA (sha256)",
    "vgg_sha256": "`vgg` (sha256)",
    "vae": "`vaes` (sha256)",
}


def option_of(key: str) -> str:
    """What a user calls what a run is known by: a field, a setting, or what it is."""
    return _WORDS.get(key, key)


def newest_checkpoint(folder: str) -> dict[str, Any] | None:
    """What the newest checkpoint of the run in `folder`, any fsspec url, says: its `identity` and `numbers`.

    One that says nothing is passed over, as resuming passes it over. None without any.
    """
    checkpoints = files.join(folder, "checkpoints")
    for step in reversed(steps_named(files.names(checkpoints))):
        content = json_object(files.join(checkpoints, step_name(step), "state.json"))
        if content is not None and all(isinstance(content.get(it), dict) for it in ("identity", "numbers")):
            return content
    return None


def refuse_finished(
    folder: str,
    kind: str,
    made_by: str,
    describes: Callable[[dict[str, Any]], dict[str, Any]],
    facts: dict[str, Any],
    name_of: NameOf = option_of,
    grown: frozenset[str] = frozenset(),
) -> None:
    """Raise RunMismatch where `folder` holds a finished run of another recipe or other data.

    describes: what of a run's facts must stay the same, but for what has `grown`, see `Extension`. Unfinished ones are
    compared by their checkpoints.
    """
    if files.exists(files.join(folder, RUN_FILE)):
        found = read_run_record(folder, kind, made_by)
        theirs, ours = (
            {name: it for name, it in describes(some).items() if name not in grown} for some in (found, facts)
        )
        _refuse(folder, theirs, ours, name_of)


@contextlib.contextmanager
def refusing_another(folder: str, name_of: NameOf = option_of) -> Iterator[None]:
    """Say in those words that the checkpoints in `folder` are another run's: a RunMismatch."""
    try:
        yield
    except AnotherRun as problem:
        _refuse(folder, problem.theirs, problem.ours, name_of)
        raise


def refuse_changes(folder: str, changes: Mapping[str, tuple[Any, Any]], name_of: NameOf = option_of) -> None:
    """Raise RunMismatch naming these changes, by flat name: what was and is."""
    theirs, ours = ({key: it[side] for key, it in changes.items()} for side in (0, 1))
    _refuse(folder, theirs, ours, name_of)


def _refuse(folder: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], name_of: NameOf) -> None:
    old, new = ({name_of(key): it for key, it in _flat(some).items()} for some in (theirs, ours))
    refuse_difference(folder, old, new, "recipe or data")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
