"""Callable packages: `embedpipe.encode` is both a package and the function that does its job.

Python binds a package's name to the package as soon as anything in it is imported, so the package itself must be
callable.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that calls the function `main` ("module:function", relative to the package) when called."""

    main: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """Of the function: what `help` and notebooks show of the room."""
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        module, _, function = self.main.partition(":")
        home = importlib.import_module(module, self.__name__) if module else self
        found: Callable[..., Any] = getattr(home, function)
        return found


def callable_as(name: str, main: str) -> None:
    """Make the module called `name` callable as `main`."""
    module = sys.modules[name]
    module.__class__ = _Room
    module.main = main  # type: ignore[attr-defined]
