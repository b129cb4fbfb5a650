"""For each row of a cluster, the row before it that is most like it: the inner loop of SemDeDup.

Abbas et al., SemDeDup (2303.09540), section 3: rows are brought into the order in which they are to be kept; a row goes
when one before it is nearer than the threshold. Knowing each row's nearest predecessor answers that for every
threshold at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TILE = 2048

# Rows [start, stop) as float32 [stop - start, dim], L2-normalised, in the order in which they are to be kept.
Rows = Callable[[int, int], np.ndarray]


def nearest_before(rows: Rows, start: int, stop: int, tile: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    """(cosine float32, position int64), each [stop - start]: the nearest predecessor of each row of [start, stop).

    -1, -1 where there is none. Holds two tiles of rows and one product of them, however many rows come before. Of
    equally near ones the first counts.
    """
    mine = rows(start, stop)
    every = np.arange(stop - start)
    cosine = np.full(stop - start, -1, np.float32)
    position = np.full(stop - start, -1, np.int64)
    for earlier in range(0, stop, tile):
        last = min(earlier + tile, stop)
        product = mine @ (mine[: last - earlier] if earlier == start else rows(earlier, last)).T
        if last > start:
            product[np.arange(earlier, last) >= np.arange(start, stop)[:, None]] = -np.inf  # only those before a row
        best = product.argmax(axis=1)
        value = product[every, best]
        better = value > cosine
        cosine[better], position[better] = value[better], earlier + best[better]
    return cosine, position
