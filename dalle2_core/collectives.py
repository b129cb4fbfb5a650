"""What a model may ask of the other processes that train it, and of none where it is trained alone."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Collectives(Protocol):
    """Every process calls the same methods in the same order."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; plain values that can be pickled."""
        ...


class SingleProcess:
    """One process, which is all there are."""

    def total(self, tensor: Tensor) -> Tensor:
        """See `Collectives`."""
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """See `Collectives`."""
        return [value]
