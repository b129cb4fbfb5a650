"""What a run folder keeps besides its results: the configuration, the versions and the commit that made it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedpipe import files
from embedpipe.clip_model.compatibility import same_encoder
from embedpipe.clip_model.encoder_card import EncoderCard, card_from
from embedpipe.errors import DatasetError, InputError
from embedpipe.folder_kind import OTHER, what_is
from embedpipe.redact import redacted_values

RUN_FILE = "run.json"
_PACKAGES = ("embedpipe", "torch", "open_clip_torch", "numpy", "pyarrow", "img2dataset", "faiss-cpu")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results; the git commit when run from a checkout."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _git_commit()
    return found | ({"git_commit": commit} if commit else {})


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_run_record(folder: str, kind: str, facts: dict[str, Any]) -> None:
    """Write `run.json` whole: what kind of run this is, and its facts (plain JSON values)."""
    content = redacted_values({"kind": kind, "versions": versions(), **facts})
    files.write_bytes(files.join(folder, RUN_FILE), (json.dumps(content, indent=1) + "\n").encode())


def made_for(folder: str, facts: Mapping[str, Any], other: str, card: EncoderCard, trust_old_card: bool) -> bool:
    """Whether a run in `folder` was trained on embeddings of the encoder of `card`, which is that of `other`.

    Raises RunMismatch where one of the two was written by version 0.1, all else agrees, and nobody vouches for it.
    """
    try:
        theirs = card_from(facts["encoder"])
    except (KeyError, ValueError):  # as much as is there
        return bool(facts["fingerprint"] == card.fingerprint())
    return same_encoder((folder, theirs), (other, card), trust_old_card)


def json_object(location: str) -> dict[str, Any] | None:
    """An object of JSON; None without the file, or where it is damaged, which others report."""
    data = files.read_if_there(location)
    try:
        content = json.loads(data) if data is not None else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def read_run_record(folder: str, kind: str, made_by: str) -> dict[str, Any]:
    """Read `run.json`. Raises InputError or DatasetError when the folder holds no such run."""
    location = files.join(folder, RUN_FILE)
    if not files.exists(folder):
        raise InputError(f"{folder}: no such folder", "Check the path")
    if not files.exists(location):
        found = what_is(folder)
        said = f"no {RUN_FILE} in it" if found.kind == OTHER else f"is {found.said}, not a {kind} run"
        raise DatasetError(f"{folder}: {said}", f"Give a folder written by `embedpipe {made_by}`")
    try:
        content = json.loads(files.read_bytes(location))
    except ValueError as problem:
        raise DatasetError(f"{location}: damaged: {problem}") from problem
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise DatasetError(
            f"{folder}: is {what_is(folder).said}, not a {kind} run", f"Give a folder written by `embedpipe {made_by}`"
        )
    return content
