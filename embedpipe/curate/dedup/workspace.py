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

_IDENTITY = "identity.json"


@dataclass
class Kept:
    """Arrays in a local folder, each whole or not there. Any number of processes may keep arrays of different names."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where a file of that name is."""
        return self.folder / name

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept under `name`, made and kept if it is not there."""
        if not self.has(name):
            self.keep(name, make())
        return self.read(name)

    def read(self, name: str) -> np.ndarray:
        """The array kept under `name`."""
        kept: np.ndarray = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return kept

    def has(self, name: str) -> bool:
        """Whether an array is kept under `name`."""
        return (self.folder / f"{name}.npy").exists()

    def names(self) -> set[str]:
        """The names of all arrays that are kept. By a listing: a shared folder may remember that one was missing."""
        return {path.stem for path in self.folder.glob("*.npy")}

    def keep(self, name: str, array: np.ndarray) -> None:
        """Keep an array, whole or not at all."""
        with files.writing(str(self.folder / f"{name}.npy")) as stream:
            np.save(stream, array, allow_pickle=False)


class Workspace(Kept):
    """A folder of arrays and files made for the job that `identity` describes; what was made for another is removed.

    To be opened by one process at a time: hold the lock of the output. key: a short name of the job; what workers keep
    has it in its name, since one of a run before may finish what it has in hand.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        super().__init__(folder)
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
        """Remove all files but the arrays named; the one that says what they are for goes last, or stays with them."""
        if self.folder.is_dir():
            stay = {*(f"{name}.npy" for name in but), *((_IDENTITY,) if but else ())}
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == _IDENTITY):
                if path.name not in stay:
                    path.unlink()
