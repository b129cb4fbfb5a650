"""Check a training run: that its checkpoints hold what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .. import files
from ..errors import InputError
from ..folder_kind import FolderKind

_CHECKPOINTS = "checkpoints"


def checkpoint_steps(path: str) -> list[str]:
    """Names of the checkpoints of a run, in order."""
    return sorted(name for name in files.names(files.join(path, _CHECKPOINTS)) if name.startswith("step-"))


def run_faults(path: str, found: FolderKind, deep: bool) -> Iterator[str]:
    """What is wrong with a run: its record or its checkpoints. deep: the checksums of all files are compared."""
    if found.facts == {} and files.exists(files.join(path, "run.json")):
        yield "run.json: damaged: not JSON"
    for name in checkpoint_steps(path):
        folder = files.join(path, _CHECKPOINTS, name)
        try:
            digests = json.loads(files.read_bytes(files.join(folder, "state.json")))["sha256"]
            wrong = [file for file, digest in digests.items() if not _holds(files.join(folder, file), digest, deep)]
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            yield f"{_CHECKPOINTS}/{name}/state.json: missing or damaged ({type(problem).__name__})"
            continue
        yield from (f"{_CHECKPOINTS}/{name}/{file}: missing, or its bytes were changed" for file in sorted(wrong))


def _holds(location: str, digest: str, deep: bool) -> bool:
    return files.exists(location) and (not deep or files.sha256(location) == digest)
