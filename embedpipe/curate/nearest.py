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


def nearest_before(rows: Rows, count: int, tile: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    """(cosine float32 [count], position int64 [count]) of each row's nearest predecessor; -1, -1 where there is none.

    Holds three tiles of rows and one [tile, tile] product, whatever `count` is. Of equally near ones the first counts.
    """
    cosine = np.full(count, -1, np.float32)
    position = np.full(count, -1, np.int64)
    for start in range(0, count, tile):
        stop = min(start + tile, count)
        mine = rows(start, stop)
        for earlier in range(0, start + 1, tile):
            others = mine if earlier == start else rows(earlier, min(earlier + tile, count))
            product = mine @ others.T
            if earlier == start:
                product[np.triu_indices(len(product))] = -np.inf  # only those before a row
            best = product.argmax(axis=1)
            value = product[np.arange(len(product)), best]
            better = value > cosine[start:stop]
            cosine[start:stop][better] = value[better]
            position[start:stop][better] = earlier + best[better]
    return cosine, position
