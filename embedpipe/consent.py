"""What this user gave to embedpipe on this machine, so that data of others cannot have it opened by naming it.

A data set or run that somebody else made names models and image shards. They are loaded only if this user encoded or
trained with them here, or consented. One small file each, below `$EMBEDPIPE_STATE`, else `$XDG_STATE_HOME/embedpipe`,
else `~/.local/state/embedpipe`:

    models/<sha256 of its name>      a model: a folder, a checkpoint file or hf-hub:ORG/NAME
    sources/<sha256 of location>     marks of the input shards that were encoded from there

Where nothing can be written there, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .redact import redacted

if TYPE_CHECKING:
    from .types import SourceShard

HUB = "hf-hub:"
_VARIABLE = "EMBEDPIPE_STATE"

Ask = Callable[[str], bool]
"""Asks the user a question of yes and no; False where there is nobody to ask."""


def _nobody(question: str) -> bool:
    return False


_state: dict[str, Ask] = {"ask": _nobody}


def ask_by(ask: Ask) -> None:
    """Have questions of consent asked by `ask` from now on, in this process."""
    _state["ask"] = ask


def state_root() -> Path | None:
    """The folder of everything that is remembered; None if there is no home folder."""
    if said := os.environ.get(_VARIABLE):
        return Path(said)
    if usual := os.environ.get("XDG_STATE_HOME"):
        return Path(usual, "embedpipe")
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".local" / "state" / "embedpipe"
    return None


def trust_model(model: str) -> None:
    """Remember that this user trusts a model: a folder, a checkpoint file, or `hf-hub:ORG/NAME`.

    Data sets and runs of others that name it may then load it, see `embedpipe search`. It never runs code of its own.
    """
    _append("models", _model_key(model), [_model_key(model)])


def trusts_model(model: str) -> bool:
    """Whether this user encoded or trained with a model here, or consented to it."""
    return bool(_lines("models", _model_key(model)))


def consents(model: str, named_by: str) -> bool:
    """Whether a model that `named_by` names may be loaded; asks, and remembers a yes."""
    if trusts_model(model):
        return True
    if not _state["ask"](f"{named_by} names the model {model}, which you have not used here. Load it?"):
        return False
    trust_model(model)
    return True


def remember_source(location: str, shards: Iterable[SourceShard]) -> None:
    """Remember that this user gave `location`, from which these input shards were read."""
    key = _source_key(location)
    known = set(_lines("sources", key))
    _append("sources", key, [mark for mark in map(_mark, shards) if mark not in known])


def gave_source(location: str, shards: Iterable[SourceShard]) -> bool:
    """Whether this user gave `location`, and any of these shards was read from it.

    Somebody else's data set may name a folder that this user encoded, but not the time stamps of its files.
    """
    known = set(_lines("sources", _source_key(location)))
    return bool(known) and any(_mark(shard) in known for shard in shards)


def _mark(shard: SourceShard) -> str:
    return hashlib.sha256(f"{shard.name}\0{shard.bytes}\0{shard.modified}".encode(errors="replace")).hexdigest()[:24]


def _model_key(model: str) -> str:
    return model if model.startswith(HUB) else os.path.realpath(model.removeprefix("local-dir:"))


def _source_key(location: str) -> str:
    local = "://" not in location or location.startswith("file://")
    return os.path.realpath(location.removeprefix("file://")) if local else redacted(location).rstrip("/")


def _place(kind: str, key: str) -> Path | None:
    root = state_root()
    return None if root is None else root / kind / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _lines(kind: str, key: str) -> list[str]:
    place = _place(kind, key)
    try:
        return place.read_text("utf-8", "replace").split("\n")[:-1] if place is not None else []
    except OSError:
        return []


def _append(kind: str, key: str, lines: list[str]) -> None:
    place = _place(kind, key)
    if place is None or not lines or (kind == "models" and _lines(kind, key)):
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One write: of several processes, none tears the lines of another.
        with place.open("ab", buffering=0) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
