"""The order in which rows are seen, as a pure function of (seed, epoch): nothing to save but the position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `rows` that depends on (seed, epoch) only."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def batches_from(rows: np.ndarray, batch_size: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """Row numbers of batch `step`, `step + 1`, … without end: each epoch visits every row once, in its own order.

    Batches run on across the border of two epochs, so all have `batch_size` rows.
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
