"""Ragged arrays: rows of different lengths without padding, for the token states of captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Values copied per step when reordering rows: small compared with a shard, large compared with the call overhead.
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """Row i is `values[starts[i] : starts[i] + lengths[i]]`, [length, w]. Several rows may share their values.

    values: [sum, w]. starts: int64 [n]. lengths: int32 [n], each at least 1.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def packed(cls, values: np.ndarray, lengths: np.ndarray) -> RaggedRows:
        """Rows stored consecutively in `values`."""
        ends = np.cumsum(lengths, dtype=np.int64)
        return cls(values, ends - lengths, lengths.astype(np.int32, copy=False))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """[length, w], a view."""
        found: np.ndarray = self.values[self.starts[row] : self.starts[row] + self.lengths[row]]
        return found

    @property
    def width(self) -> int:
        """The width w of a value."""
        return int(self.values.shape[1])

    @property
    def total(self) -> int:
        """Sum of all lengths."""
        return int(self.lengths.sum(dtype=np.int64))

    def take(self, rows: np.ndarray) -> RaggedRows:
        """The given rows, in that order (numbers or a mask), without copying values."""
        return RaggedRows(self.values, self.starts[rows], self.lengths[rows])

    def blocks(self) -> Iterator[np.ndarray]:
        """All values in row order, [some, w] at a time."""
        most = max(1, _VALUES_AT_ONCE // max(1, self.width))
        ends = np.cumsum(self.lengths, dtype=np.int64)
        first = 0
        while first < len(self):
            reached = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, reached + most, side="right")))
            yield self.values[_places(self.starts[first:last], self.lengths[first:last])]
            first = last

    def flat(self) -> np.ndarray:
        """All values in row order, [total, w]."""
        blocks = list(self.blocks())
        return np.concatenate(blocks) if blocks else np.empty((0, self.width), self.values.dtype)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """[n, longest, w], padded with zeros, and a mask [n, longest] bool, True at real values."""
        longest = int(self.lengths.max(initial=0))
        mask = np.arange(longest) < self.lengths[:, None]
        out = np.zeros((len(self), longest, self.width), self.values.dtype)
        out[mask] = self.values[_places(self.starts, self.lengths)]
        return out, mask

    def finite(self) -> np.ndarray:
        """bool [n]: whether all values of a row are finite."""
        bad = np.zeros(len(self.values) + 1, np.int64)
        step = max(1, _VALUES_AT_ONCE // max(1, self.width))
        for first in range(0, len(self.values), step):
            bad[first + 1 : first + 1 + step] = ~np.isfinite(self.values[first : first + step]).all(axis=1)
        before = np.cumsum(bad)
        return np.asarray(before[self.starts + self.lengths] == before[self.starts])


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices of the rows' values, row after row: int64 [sum of lengths]."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.asarray(np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths))
