"""Row numbers from any index that numpy accepts for one axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Index = int | slice | Sequence[int] | np.ndarray


def as_row(index: int | np.integer, total: int) -> int:
    """One row by its number (negative: from the end) as a non-negative one. Raises IndexError."""
    row = int(index) + total if index < 0 else int(index)
    if not 0 <= row < total:
        raise IndexError(f"row {index} of {total}")
    return row


def as_rows(index: slice | Sequence[int] | np.ndarray, total: int) -> np.ndarray:
    """int64 [n]: rows by a slice, by numbers (negative: from the end) or by a mask. Raises IndexError."""
    if isinstance(index, slice):
        return np.arange(*index.indices(total))
    chosen = np.asarray(index)
    if chosen.dtype == bool and chosen.shape == (total,):
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
        raise IndexError(f"rows are chosen by a number, a slice, a list of numbers or a mask of {total} rows")
    rows = np.where(chosen < 0, chosen.astype(np.int64) + total, chosen.astype(np.int64))
    if rows.size and (rows.min() < 0 or rows.max() >= total):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {total}")
    return rows
