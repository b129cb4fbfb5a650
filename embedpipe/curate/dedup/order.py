"""Comparison order: rows sorted by cluster, then by keeping priority, and split into units of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .nearest import TILE


@dataclass(frozen=True, slots=True)
class Order:
    """row: the row at each position, int64 [m]. again: bool [m], true where a row is in its second cluster.

    bounds: int64 [clusters + 1], the start of each cluster and the end of the last one.
    """

    row: np.ndarray
    again: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions [start, stop), in the cluster that begins at `first`: one unit of work."""

    first: int
    start: int
    stop: int

    @property
    def products(self) -> int:
        """The number of tile products that this work takes."""
        return (self.stop - self.first + TILE - 1) // TILE


def keeping_order(cluster: np.ndarray, other: np.ndarray, priority: np.ndarray, clusters: int) -> Order:
    """Sort rows by cluster, then by keeping priority (small `priority` first), then as in the data set.

    cluster: int32 [n], -1 for rows to leave out. other: int32 [n], the second cluster, or -1.
    """
    once = np.flatnonzero(cluster >= 0)
    twice = np.flatnonzero((cluster >= 0) & (other >= 0))
    inside = np.concatenate([cluster[once], other[twice]])
    bounds = np.concatenate([[0], np.cumsum(np.bincount(inside, minlength=clusters))])
    order = np.argsort(inside, kind="stable")
    del inside
    again = order >= len(once)
    row = np.concatenate([once, twice])
    del once, twice
    row = row[order]
    del order
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        members = row[first:last]
        by_rank = np.lexsort((members, priority[members]))
        row[first:last], again[first:last] = members[by_rank], again[first:last][by_rank]
    return Order(row, again, bounds)


def stretches(order: Order, most_products: int) -> Iterator[list[Stretch]]:
    """All work in order, in groups of about `most_products` tile products."""
    group: list[Stretch] = []
    for first, last in zip(order.bounds[:-1].tolist(), order.bounds[1:].tolist(), strict=True):
        for start in range(first, last, TILE):
            group.append(Stretch(first, start, min(start + TILE, last)))
            if sum(part.products for part in group) >= most_products:
                yield group
                group = []
    if group:
        yield group


class Positions:
    """Positions of rows in an Order."""

    def __init__(self, order: Order, rows: int) -> None:
        once, twice = np.flatnonzero(~order.again), np.flatnonzero(order.again)
        self._once = np.full(rows, -1, np.int64)
        self._once[order.row[once]] = once
        by_row = np.argsort(order.row[twice], kind="stable")
        self._twice, self._twice_row = twice[by_row], order.row[twice][by_row]

    def of(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(offsets from `start`, positions) of the rows [start, stop); some rows have two, some none."""
        once = self._once[start:stop]
        there = np.flatnonzero(once >= 0)
        some = slice(*np.searchsorted(self._twice_row, (start, stop)))
        offsets = np.concatenate([there, self._twice_row[some] - start])
        return offsets, np.concatenate([once[there], self._twice[some]])
