"""The errors of `dalle2_core`: one line each, saying what is wrong, where, and what to do.

CoreError
├── ConfigError        a setting that cannot be
├── ShapeError         a tensor of the wrong shape, dtype or range
├── CheckpointError    weights or a checkpoint that cannot be read, written or continued
│   └── AnotherRun     a checkpoint of other settings or data
└── NonFiniteLoss      training met NaN or infinity
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CoreError(Exception):
    """Base of every error a user can meet here."""


class ConfigError(CoreError, ValueError):
    """A setting that cannot be: unknown name, impossible number, two settings that exclude each other."""


class ShapeError(CoreError, ValueError):
    """A tensor of the wrong shape, dtype or range."""


class CheckpointError(CoreError):
    """Weights or a checkpoint that cannot be read, written or continued."""


class AnotherRun(CheckpointError):
    """A checkpoint of another run. theirs, ours: what differs, by name, as nested dicts of plain values hold it.

    what, remedy: the beginning and the end of the message.
    """

    def __init__(
        self,
        folder: Path,
        theirs: Mapping[str, Any],
        ours: Mapping[str, Any],
        what: str = "belongs to another run",
        remedy: str = "Use a new output folder, or the old settings",
    ) -> None:
        super().__init__(folder, theirs, ours, what, remedy)
        self.folder, self.theirs, self.ours = folder, dict(theirs), dict(ours)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        absent = "(absent)"
        said = "; ".join(
            f"{name} is {self.theirs.get(name, absent)!r} there and {self.ours.get(name, absent)!r} here"
            for name in sorted(self.theirs.keys() | self.ours.keys())
        )
        return f"{self.folder}: {self.what}: {said}. {self.remedy}"


class NonFiniteLoss(CoreError):
    """The loss or the gradient became NaN or infinite. `step` counts optimizer steps from 1."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
