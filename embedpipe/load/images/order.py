"""The order of training images: shards are read sequentially, several at a time, and their rows shuffled in a window.

Random access in tars would read each many times. Each epoch shuffles the shards into groups; the shards of a group are
read in parallel, a stretch of each at a time, and the rows of such a window are shuffled. Everything is a function of
(seed, epoch) and the number of rows in each shard.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..shuffle import Window


class StreamedOrder:
    """The endless stream of epochs over rows stored in consecutive shards.

    bounds: the position of the first row of each shard, followed by the total: int64, increasing, from 0. window_rows:
    the approximate size of the shuffle window. shards_at_once: read in parallel.
    """

    def __init__(self, bounds: np.ndarray, seed: int, window_rows: int, shards_at_once: int = 8) -> None:
        if window_rows < 1 or shards_at_once < 1 or not bounds[-1]:
            raise ValueError("window_rows and shards_at_once must be at least 1 and rows not empty")
        self.total = int(bounds[-1])
        self._bounds = bounds
        self._seed = seed
        self._window_rows = window_rows
        self._shards_at_once = shards_at_once

    def windows(self, position: int) -> Iterator[Window]:
        """The windows from the one with `position` on, endlessly; the first is cut to start there."""
        epoch, inside = divmod(position, self.total)
        while True:
            begins = 0
            for number, places in enumerate(self._epoch(epoch)):
                begins += len(places)
                if begins <= inside:
                    continue
                mixed = np.random.default_rng((self._seed, epoch, number)).permutation(len(places))
                positions = epoch * self.total + begins - len(places) + mixed
                ahead = positions >= position
                yield Window(places[ahead], positions[ahead])
            epoch, inside = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """The positions of each window of an epoch, ascending."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._bounds) - 1)
        for first in range(0, len(order), self._shards_at_once):
            group = np.sort(order[first : first + self._shards_at_once])
            begins, sizes = self._bounds[group], self._bounds[group + 1] - self._bounds[group]
            windows = -(-int(sizes.sum()) // self._window_rows)
            for window in range(windows):
                low, high = begins + sizes * window // windows, begins + sizes * (window + 1) // windows
                yield np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
