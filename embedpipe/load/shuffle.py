"""Shuffled row order as a pure function of (seed, epoch): the only state to save is the position.

Rows in memory are permuted as a whole (`batches_from`). Rows in files (`ShuffledOrder`) are divided into contiguous
pieces of a shard. An epoch shuffles the pieces, takes a window of them at a time, and shuffles the rows of the window:
files are read a piece at a time, and a window fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# A window mixes rows from at least this many locations in the data set, if it has as many.
_PIECES_IN_WINDOW = 8


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `rows` that depends on (seed, epoch) only."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def batches_from(rows: np.ndarray, batch_size: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """Row numbers of batch `step`, `step + 1`, … endlessly: each epoch visits every row once, in its own order.

    Batches may span two epochs, so all have `batch_size` rows.
    """
    if batch_size < 1 or not len(rows):
        raise ValueError("batch_size must be at least 1 and rows not empty")
    position = step * batch_size
    epoch, offset = divmod(position, len(rows))
    order = epoch_order(rows, seed, epoch)[offset:]
    while True:
        while len(order) < batch_size:
            epoch += 1
            order = np.concatenate([order, epoch_order(rows, seed, epoch)])
        yield order[:batch_size]
        order = order[batch_size:]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive rows of the endless stream of epochs, listed in file order.

    places: int64 [n], ascending, among the drawn rows. positions: int64 [n], the position of each in the stream,
    counted from the start of epoch 0; together they are n consecutive numbers.
    """

    places: np.ndarray
    positions: np.ndarray


class ShuffledOrder:
    """The stream of all epochs over `total` rows in shards: each epoch visits every index 0 … total-1 once.

    bounds: the index of the first row of each shard, followed by `total`: int64, not decreasing, from 0.
    most_in_window: no window has more rows.
    """

    def __init__(self, bounds: np.ndarray, seed: int, window_rows: int) -> None:
        if window_rows < 1 or not bounds[-1]:
            raise ValueError("window_rows must be at least 1 and rows not empty")
        self.total = int(bounds[-1])
        self._seed = seed
        self._window_rows = window_rows
        most = max(1, window_rows // _PIECES_IN_WINDOW)
        cuts = [
            np.arange(first, last, most) for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        self._starts = np.concatenate(cuts)
        self.most_in_window = min(self.total, window_rows + most)
        self._sizes = np.diff(np.append(self._starts, self.total))

    def windows(self, position: int) -> Iterator[Window]:
        """The windows from the one with `position` on, endlessly; the first is cut to start there."""
        epoch, inside = divmod(position, self.total)
        while True:
            for window in self._epoch(epoch, inside):
                ahead = window.positions >= position
                yield window if ahead.all() else Window(window.places[ahead], window.positions[ahead])
            epoch, inside = epoch + 1, 0

    def _epoch(self, epoch: int, inside: int) -> Iterator[Window]:
        """The windows of an epoch, from the one with its row `inside` on."""
        pieces = np.random.default_rng((self._seed, epoch)).permutation(len(self._starts))
        begins = np.cumsum(self._sizes[pieces]) - self._sizes[pieces]
        cuts = np.flatnonzero(np.diff(begins // self._window_rows, prepend=-1))
        ends = np.append(cuts[1:], len(pieces))
        first = int(np.searchsorted(begins[cuts], inside, side="right")) - 1
        for number in range(first, len(cuts)):
            chosen = np.sort(pieces[cuts[number] : ends[number]])  # shuffled below; files are read sequentially
            places = np.concatenate([np.arange(self._starts[p], self._starts[p] + self._sizes[p]) for p in chosen])
            mixed = np.random.default_rng((self._seed, epoch, number)).permutation(len(places))
            yield Window(places, epoch * self.total + int(begins[cuts[number]]) + mixed)
