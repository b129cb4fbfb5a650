"""Modules that belong beside a model and not into it: neither trained nor saved, but moved along."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound="MovesBeside")


class MovesBeside(nn.Module):
    """A module that takes others along to another device or dtype, which are not its children."""

    def beside(self) -> Iterable[object]:
        """Those others; what is no module stays where it is."""
        return ()

    def _apply(self: M, fn: Callable[..., Any], recurse: bool = True) -> M:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for other in self.beside():
            if isinstance(other, nn.Module):
                other._apply(fn)  # type: ignore[no-untyped-call]
        return self
