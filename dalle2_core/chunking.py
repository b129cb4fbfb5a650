"""Work on rows in pieces that fit the memory: a piece that does not is tried again with half of its rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_core.errors import ConfigError

# What torch says on the CPU, and for libraries of CUDA that allocate for themselves.
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)

# Told of the number of rows that will be tried from here on.
OnSmaller = Callable[[int], None]


def run_in_chunks(
    rows: int, at_once: int | None, make: Callable[[int, int], Tensor], on_smaller: OnSmaller | None = None
) -> Tensor:
    """`make(start, stop)` for all rows, joined; at most `at_once` of them together, None for all.

    Where memory runs out the piece is made again by halves, and so are the pieces after it; what was made stays. What
    `make` draws must belong to rows (`RowDraws`), or a repeated piece would differ. on_smaller: hears of it; None
    makes it a warning. Raises what `make` does, running out of memory for a single row included.
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"max_batch_size is {at_once}; it must be 1 or more")
    size, start = at_once or rows, 0
    made = []
    while start < rows:
        stop = min(start + size, rows)
        piece = _tried(make, start, stop)
        if piece is not None:
            made.append(piece)
            start = stop
            continue
        size = (stop - start) // 2
        # The failed attempt's tensors are gone by now; what the allocator kept of them is given back.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        (on_smaller or _warn)(size)
    return torch.cat(made)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether a device or the machine had no memory left. Only CUDA's allocator has an error of its own for that."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(said in str(problem) for said in _NO_MEMORY)


def _tried(make: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor | None:
    """The piece, or None if it has several rows and no memory was left for them."""
    try:
        return make(start, stop)
    except (RuntimeError, MemoryError) as problem:
        if stop - start == 1 or not is_out_of_memory(problem):
            raise
    return None


def _warn(size: int) -> None:
    warnings.warn(f"out of memory: going on with {size} rows at once", RuntimeWarning, stacklevel=4)
