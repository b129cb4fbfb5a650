"""In what precision matrix products are computed, in training and in use; weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dalle2_core.errors import ConfigError

PRODUCT_PRECISIONS = ("float32", "tf32", "bfloat16")


def require_precision(precision: str) -> None:
    """Raise ConfigError unless `precision` is one of PRODUCT_PRECISIONS."""
    if precision not in PRODUCT_PRECISIONS:
        raise ConfigError(f"no precision {precision!r}; known: {', '.join(PRODUCT_PRECISIONS)}")


@contextmanager
def computing(precision: str, device: torch.device | str) -> Iterator[None]:
    """Within the block, or the function that this decorates, compute products in one of PRODUCT_PRECISIONS.

    float32: as the weights are. tf32: on CUDA with factors of 10 bits, as convolutions there are anyway; elsewhere
    float32. bfloat16: under autocast, whose results are bfloat16. Raises ConfigError for another one.
    """
    require_precision(precision)
    kind = torch.device(device).type
    with allowing_tf32(precision), torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
        yield


@contextmanager
def allowing_tf32(precision: str) -> Iterator[None]:
    """The part of `computing` that a backward pass must be in, too; autocast must not be around one."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before or precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
