"""What modules share: companions that follow .to() but are not in state_dict(), and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound="CompanionModules")


class CompanionModules(nn.Module):
    """A module that takes others along to another device or dtype, which are not its children."""

    def companions(self) -> Iterable[object]:
        """Those others; what is no module stays where it is."""
        return ()

    def _apply(self: M, fn: Callable[..., Any], recurse: bool = True) -> M:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for other in self.companions():
            if isinstance(other, nn.Module):
                other._apply(fn)  # type: ignore[no-untyped-call]
        return self


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout inside; the mode is as before afterwards."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
