"""Nearest predecessors of each row within a cluster: the inner loop of SemDeDup.

Abbas et al., SemDeDup (2303.09540), section 3: rows are sorted by keeping priority; a row is dropped when a predecessor
is nearer than the threshold. The nearest predecessor of each row therefore answers for every threshold at once; the
next nearest ones are candidates for the image comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TILE = 2048

# Rows [start, stop) as float32 [stop - start, dim], L2-normalised, in keeping order.
Rows = Callable[[int, int], np.ndarray]


def nearest_before(
    rows: Rows, start: int, stop: int, most: int = 1, floor: float = 1, tile: int = TILE
) -> tuple[np.ndarray, np.ndarray]:
    """(cosine float32, position int64), each [stop - start, most]: the nearest predecessors of the rows [start, stop).

    The nearest first; -1, -1 if there is none. All but the first need a cosine of at least `floor`. Uses memory for two
    tiles of rows and one product of them, however many predecessors there are. Of equally near ones the first counts.
    """
    mine = rows(start, stop)
    cosine = np.full((stop - start, most), -1, np.float32)
    position = np.full((stop - start, most), -1, np.int64)
    for earlier in range(0, stop, tile):
        last = min(earlier + tile, stop)
        product = mine @ (mine[: last - earlier] if earlier == start else rows(earlier, last)).T
        if last > start:
            product[np.arange(earlier, last) >= np.arange(start, stop)[:, None]] = -np.inf  # only predecessors of a row
        _enter(product, earlier, floor, cosine, position)
    return cosine, position


def _enter(product: np.ndarray, first: int, floor: float, cosine: np.ndarray, position: np.ndarray) -> None:
    """Insert the largest values of each row of `product`, one per round; its columns are positions from `first` on."""
    rows = np.arange(len(product))
    for _ in range(cosine.shape[1]):
        best = product.argmax(axis=1)
        value = product[np.arange(len(rows)), best]
        better = value > cosine[rows, -1]
        product[np.arange(len(rows)), best] = -np.inf
        entered = rows[better]
        values = np.column_stack([cosine[entered], value[better]])
        places = np.column_stack([position[entered], first + best[better]])
        order = np.argsort(-values, axis=1, kind="stable")[:, :-1]
        cosine[entered] = np.take_along_axis(values, order, axis=1)
        position[entered] = np.take_along_axis(places, order, axis=1)
        again = better & (value >= floor)
        if not again.any():
            return
        rows, product = rows[again], product[again]
