"""Duplicate search: SemDeDup (Abbas et al., 2303.09540) on disk.

Rows are clustered, sorted by cluster and keeping priority, and compared within their cluster; a row near the border of
two clusters is compared in both. The result is the nearest predecessor of each row, so one pass answers for every
threshold. Rows with the same file are recognised by its hash, and only the first of them is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...execute import in_order
from ...execute.threads import one_thread_each
from ...index.card import data_digest
from ...load import EmbeddingDataset
from ...load.row_blocks import row_blocks, unit_rows
from ...progress import Listener, Progress
from .clusters import BORDER, CENTERS, MOST_TWICE, Workers, assign_all, centers_of, near_border
from .exact_copies import SameContent, same_content
from .nearest import nearest_before
from .order import Order, Positions, Stretch, keeping_order, stretches
from .scratch_rows import ScratchRows, require_disk_space
from .workspace import Workspace

# Work between saves, and so the most that a kill loses: half a minute of one core at 512 dimensions.
_PRODUCTS_IN_GROUP = 512
_FORMAT_VERSION = 2

KEEP = {
    "first": "the one that comes first in the data set",
    "similarity": "the one whose image and caption agree best",
    "closest": "the one closest to the centre of its cluster",
    "farthest": "the one farthest from the centre of its cluster",
}

_RESULT = ("nearest", "close", "counts")
_NEAREST = np.dtype([("cosine", np.float32), ("row", np.int64)])
_FOUND = np.dtype([("place", np.int64), ("of", np.int64), ("cosine", np.float32)])
CLOSE = np.dtype([("row", np.int64), ("of", np.int64), ("cosine", np.float32)])


@dataclass(frozen=True, slots=True)
class Search:
    """What to compare and which rows to prefer. keep: a name in KEEP. threads: None for one per core.

    most: the number of predecessors per row, with a cosine of at least `floor`, to return as candidate pairs; 0: none.
    workers: those that assign rows to clusters; the result does not depend on them.
    """

    modality: str
    keep: str
    seed: int
    threads: int | None
    most: int = 0
    floor: float = 1
    workers: Workers = field(default_factory=Workers)


@dataclass(frozen=True, slots=True)
class NearEarlier:
    """For each row of a data set: cosine to its nearest predecessor in keeping order, and that row; -1, -1 if none.

    cosine float32 [n], NaN if the row has the same file as `row`; row int64 [n]. close: the CLOSE pairs, by row, then
    nearest first. clusters: how many there were. twice: rows compared in two of them.
    """

    cosine: np.ndarray
    row: np.ndarray
    close: np.ndarray
    clusters: int
    twice: int


def nearest_predecessors(dataset: EmbeddingDataset, search: Search, out: Path, listen: Listener) -> NearEarlier:
    """Compare the rows of `dataset`; progress and results are stored in `out`/.dedup, for the next call.

    Uses a scratch file as large as one modality's embeddings, and about 110 bytes of memory per row. The result does
    not depend on the number of threads. Raises DatasetError (a row that is not finite), DiskFull, OSError.
    """
    identity = {
        "format_version": _FORMAT_VERSION,
        "data": data_digest(dataset),
        "modality": search.modality,
        "keep": search.keep,
        "seed": search.seed,
        "border": [BORDER, MOST_TWICE],
        "close": [search.most, search.floor],
    }
    work = Workspace(out / ".dedup", identity)
    if not work.has("nearest"):
        listen(Progress(planned=2 * len(dataset.shards) + 1))
        with one_thread_each():
            _find(dataset, search, work, listen)
    work.clear(but=_RESULT)
    found, close, counts = (work.read(name) for name in _RESULT)
    return NearEarlier(found["cosine"], found["row"], close, *counts.tolist())


def _find(dataset: EmbeddingDataset, search: Search, work: Workspace, listen: Listener) -> None:
    centers = work.array(CENTERS, lambda: centers_of(dataset, search.modality, search.seed))
    order, same = _order(dataset, search, work, len(centers), listen)
    groups = list(stretches(order, _PRODUCTS_IN_GROUP))
    listen(Progress(planned=2 * len(dataset.shards) + len(groups)))
    with ScratchRows(work.path("rows.bin"), dataset.card.dim, dataset.card.dtype) as stored:
        if not work.has("sorted"):
            need = len(order) * dataset.card.dim * np.dtype(dataset.card.dtype).itemsize
            require_disk_space(work.path("rows.bin"), need, "sorting the rows")
            _sort(dataset, search.modality, stored, order, listen)
            work.keep("sorted", np.zeros(0))
        nearest = np.empty(len(dataset), _NEAREST)
        nearest["cosine"], nearest["row"] = -1, -1
        close = [np.empty(0, CLOSE)]
        for number, group in enumerate(groups):
            compare = functools.partial(_compare, stored, group, search)
            found = work.array(f"found-{number:06d}", compare)
            _take(nearest, order, found)
            if search.most:
                close.append(_close(order, found[found["cosine"] >= search.floor]))
            listen(Progress(rows=group[-1].stop - group[0].start, tasks=1))
    nearest["cosine"][same.rows], nearest["row"][same.rows] = np.nan, same.of
    work.keep("close", _each_once(np.concatenate(close)))
    work.keep("counts", np.array([len(centers), int(order.again.sum())]))
    work.keep("nearest", nearest)


def _order(
    dataset: EmbeddingDataset, search: Search, work: Workspace, clusters: int, listen: Listener
) -> tuple[Order, SameContent]:
    """The comparison order. Rows that repeat a file are left out."""

    assigned = assign_all(dataset, search.modality, work, search.workers, listen)
    priority = _priority(dataset, search.keep, assigned["to_center"])
    same = SameContent(*np.empty((2, 0), np.int64))
    if search.modality == "image":
        same = same_content(dataset, priority)
    assigned["other"][~near_border(assigned, dataset.card.dim)] = -1
    assigned["cluster"][same.rows] = -1
    return keeping_order(assigned["cluster"], assigned["other"], priority, clusters), same


def _priority(dataset: EmbeddingDataset, keep: str, to_center: np.ndarray) -> np.ndarray:
    """float32 [n]: the keeping priority of rows, smallest first."""
    if keep == "similarity":
        alike = dataset.column("similarity").to_numpy().astype(np.float32)
        priority: np.ndarray = -np.nan_to_num(alike, nan=-1)
        return priority
    if keep == "first":
        return np.zeros(len(dataset), np.float32)
    return -to_center if keep == "closest" else to_center.copy()


def _sort(dataset: EmbeddingDataset, modality: str, stored: ScratchRows, order: Order, listen: Listener) -> None:
    places = Positions(order, len(dataset))
    for shard in range(len(dataset.shards)):
        for first, rows in row_blocks(dataset, shard, modality):
            offsets, where = places.of(first, first + len(rows))
            stored.write(rows[offsets], where)
        listen(Progress(tasks=1))
    stored.sync()


def _compare(stored: ScratchRows, group: Sequence[Stretch], search: Search) -> np.ndarray:
    """The _FOUND of a group's positions: the nearest predecessor of each, and the requested number of near ones."""

    def one(part: Stretch) -> tuple[np.ndarray, np.ndarray]:
        def rows(start: int, stop: int) -> np.ndarray:
            return unit_rows(stored.read(part.first + start, part.first + stop))

        return nearest_before(rows, part.start - part.first, part.stop - part.first, max(1, search.most), search.floor)

    found = []
    for part, (cosine, position) in in_order(one, group, search.threads):
        wanted = cosine >= search.floor
        wanted[:, 0] = True
        place, which = np.nonzero(wanted & (position >= 0))
        some = np.empty(len(place), _FOUND)
        some["place"], some["of"] = part.start + place, part.first + position[place, which]
        some["cosine"] = cosine[place, which]
        found.append(some)
    return np.concatenate(found)


def _take(nearest: np.ndarray, order: Order, found: np.ndarray) -> None:
    """Insert the nearest of each position. Of a row's two nearest the nearer counts, then the first."""
    first = np.ones(len(found), bool)
    first[1:] = found["place"][1:] != found["place"][:-1]
    found = found[first]
    again = order.again[found["place"]]
    for mine in (found[~again], found[again]):  # separately, so that no row comes twice
        rows = order.row[mine["place"]]
        better = mine["cosine"] > nearest["cosine"][rows]
        nearest["cosine"][rows[better]] = mine["cosine"][better]
        nearest["row"][rows[better]] = order.row[mine["of"][better]]


def _close(order: Order, found: np.ndarray) -> np.ndarray:
    close = np.empty(len(found), CLOSE)
    close["row"], close["of"], close["cosine"] = order.row[found["place"]], order.row[found["of"]], found["cosine"]
    return close


def _each_once(close: np.ndarray) -> np.ndarray:
    """The CLOSE pairs in order, without those found again in a second cluster."""
    close = close[np.lexsort((close["of"], -close["cosine"], close["row"]))]
    _, first = np.unique(close[["row", "of"]], return_index=True)
    kept: np.ndarray = close[np.sort(first)]
    return kept
