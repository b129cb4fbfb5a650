"""Making a feature map again in the backward pass instead of keeping it, where that costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class _View(NamedTuple):
    """What is kept in place of a tensor: how it lay in the feature map."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@contextmanager
def recomputed_in_backward(feature: Tensor, again: Callable[[], Tensor]) -> Iterator[None]:
    """Whatever inside would keep `feature` for its backward pass, or a view of it, keeps `again` instead.

    again() gives the same numbers in the same memory layout; what it closes over is kept. Without gradients
    nothing is kept anyway.
    """
    if not torch.is_grad_enabled():
        yield
        return
    # Its place, not itself: the hooks live as long as the graph, and would keep what they are to spare. Until this
    # block ends `feature` lives, so that nothing else can be in its place.
    place = feature.untyped_storage().data_ptr()

    def pack(kept: Tensor) -> Tensor | _View:
        if kept.untyped_storage().data_ptr() != place:
            return kept
        return _View(tuple(kept.shape), kept.stride(), int(kept.storage_offset()))

    def unpack(packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return again().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
