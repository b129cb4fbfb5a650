"""Intermediate results of a long job, stored in a folder so that it can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import files
from ...redact import redacted_values

_IDENTITY = "identity.json"


@dataclass
class Kept:
    """Arrays stored in a local folder, each atomically. Any number of processes may store arrays of different names."""

    folder: Path

    def path(self, name: str) -> Path:
        """The path of a file of that name."""
        return self.folder / name

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array stored under `name`, computed and stored if missing."""
        if not self.has(name):
            self.keep(name, make())
        return self.read(name)

    def read(self, name: str) -> np.ndarray:
        """The array stored under `name`."""
        kept: np.ndarray = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return kept

    def has(self, name: str) -> bool:
        """Whether an array is stored under `name`."""
        return (self.folder / f"{name}.npy").exists()

    def names(self) -> set[str]:
        """The names of all stored arrays. From a listing, because a shared folder may cache that one was missing."""
        return {path.stem for path in self.folder.glob("*.npy")}

    def keep(self, name: str, array: np.ndarray) -> None:
        """Store an array atomically."""
        with files.writing(str(self.folder / f"{name}.npy")) as stream:
            np.save(stream, array, allow_pickle=False)


class Workspace(Kept):
    """A folder of arrays and files for the job that `identity` describes; those of another job are removed.

    Open it in one process at a time, with the output locked. key: a short name of the job, part of the names of
    workers' arrays, because a worker of an earlier run may still finish its task.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        super().__init__(folder)
        identity = redacted_values(identity)
        said = json.dumps(identity, indent=1).encode()
        self.key = hashlib.sha256(said).hexdigest()[:12]
        if self._identity() != identity:
            self.clear()
            files.write_bytes(str(folder / _IDENTITY), said)
        files.sweep_temporaries(str(folder))

    def _identity(self) -> Any:
        try:
            return json.loads((self.folder / _IDENTITY).read_bytes())
        except (OSError, ValueError):
            return None

    def clear(self, but: tuple[str, ...] = ()) -> None:
        """Remove all files except the named arrays; the identity file goes last, or stays with them."""
        if self.folder.is_dir():
            stay = {*(f"{name}.npy" for name in but), *((_IDENTITY,) if but else ())}
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == _IDENTITY):
                if path.name not in stay:
                    path.unlink()
