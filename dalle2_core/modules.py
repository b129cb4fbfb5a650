"""What modules share: weights that never change, companions that follow .to() but are not in state_dict(), precise
buffers, evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound="CompanionModules")
B = TypeVar("B", bound="PreciseBuffers")


def unchanged_weights(module: nn.Module) -> frozenset[str]:
    """Names of the weights that a training leaves as they are, and need not keep: whoever builds the module has them.

    A module says so by an attribute `unchanged`; none does otherwise.
    """
    found: frozenset[str] = getattr(module, "unchanged", frozenset())
    return found


def varying_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without `unchanged_weights`."""
    unchanged = unchanged_weights(module)
    return {name: it for name, it in module.state_dict().items() if name not in unchanged}


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


class PreciseBuffers(nn.Module):
    """A module whose buffers stay as precise as LEAST, whatever dtype the model around it is brought to.

    Schedules and statistics are a few numbers that everything else is multiplied by; weights may be rounded, they not.
    """

    LEAST: ClassVar[torch.dtype] = torch.float32

    def _apply(self: B, fn: Callable[..., Any], recurse: bool = True) -> B:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            was = before[name]
            if buffer is None or was is None or not buffer.is_floating_point():
                continue
            if buffer.dtype.itemsize < self.LEAST.itemsize:
                self._buffers[name] = was.to(buffer.device)
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
