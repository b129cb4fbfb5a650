"""What the training loop asks of a logger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

from dalle2_core.errors import ConfigError


class Logger(ABC):
    """Takes numbers as they come; a resumed run opens it again."""

    @abstractmethod
    def __init__(self, folder: Path, last_step: int) -> None:
        """folder: the run's. last_step: what was logged after it, by a sitting that was killed, comes again.

        Raises ConfigError if its package is not installed.
        """

    @abstractmethod
    def write(self, kind: str, step: int, samples: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one `kind` (train, valid, online) at an optimizer step. Not-finite ones may be left out."""

    @abstractmethod
    def close(self) -> None:
        """Wait until all is written."""


def required(module: str, package: str, extra: str) -> ModuleType:
    """Import `module`. Raises ConfigError that says how to install `package`."""
    try:
        return import_module(module)
    except ImportError as problem:
        raise ConfigError(
            f"the logger {extra!r} needs the package {package} (pip install 'embedpipe[{extra}]'): {problem}"
        ) from problem
