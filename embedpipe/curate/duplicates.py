"""Which rows of an embedding data set repeat others: SemDeDup (Abbas et al., 2303.09540) on disk.

Rows are clustered, brought together by cluster in the order in which they are to be kept, and compared within their
cluster; a row near the border of two clusters stands in both. What is found is each row's nearest predecessor, so one
pass answers for every threshold. Rows of one file are told by its hash, and only the first of them is compared.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DiskFull
from ..index.card import data_digest
from ..load import EmbeddingDataset
from ..progress import Listener, Progress
from .assign import ASSIGNED, BORDER, MOST_TWICE, assign, centers_of, near_border
from .blocks import blocks, in_order, one_thread_each, unit
from .content import SameContent, same_content
from .nearest import nearest_before
from .order import Order, Places, Stretch, keeping_order, stretches
from .scatter import ScratchRows
from .workspace import Workspace

# So much work is kept at once, and lost at most: half a minute of one core at 512 dimensions.
_PRODUCTS_IN_GROUP = 512
_FORMAT_VERSION = 1
_ROUNDING = 1e-6  # of a cosine in float32: a row and itself are not always at 1

KEEP = {
    "first": "the one that comes first in the data set",
    "similarity": "the one whose image and caption agree best",
    "closest": "the one closest to the centre of its cluster",
    "farthest": "the one farthest from the centre of its cluster",
}

_RESULT = ("nearest", "counts")
_NEAREST = np.dtype([("cosine", np.float32), ("row", np.int64)])
_FOUND = np.dtype([("cosine", np.float32), ("place", np.int64)])


@dataclass(frozen=True, slots=True)
class Search:
    """What to compare and who is to be kept. keep: a name in KEEP. threads: None for one on each core."""

    modality: str
    keep: str
    seed: int
    threads: int | None


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each row of a data set: cosine to its nearest predecessor in keeping order, and that row; -1, -1: none.

    cosine float32 [n], NaN where the row's file is that of `row`; row int64 [n]. clusters: how many there were.
    twice: rows compared in two of them.
    """

    cosine: np.ndarray
    row: np.ndarray
    clusters: int
    twice: int

    def kept(self, threshold: float) -> np.ndarray:
        """bool [n]: the rows that no predecessor comes as near as that, and whose file is no predecessor's."""
        return np.asarray(self.cosine < threshold - _ROUNDING)  # false where it is NaN


def nearest_predecessors(dataset: EmbeddingDataset, search: Search, out: Path, listen: Listener) -> Nearest:
    """Compare the rows of `dataset`; what is done is kept in `out`/.dedup, and what was found in it, for the next call.

    Takes a scratch file as large as one side's embeddings, and about 110 bytes of memory a row. The result does not
    depend on the number of threads. Raises DatasetError (a row that is not finite), DiskFull, OSError.
    """
    identity = {
        "format_version": _FORMAT_VERSION,
        "data": data_digest(dataset),
        "modality": search.modality,
        "keep": search.keep,
        "seed": search.seed,
        "border": [BORDER, MOST_TWICE],
    }
    work = Workspace(out / ".dedup", identity)
    if not work.has("nearest"):
        listen(Progress(planned=2 * len(dataset.shards) + 1))
        with one_thread_each():
            _find(dataset, search, work, listen)
    work.clear(but=_RESULT)
    found, counts = (work.read(name) for name in _RESULT)
    return Nearest(found["cosine"], found["row"], *counts.tolist())


def _find(dataset: EmbeddingDataset, search: Search, work: Workspace, listen: Listener) -> None:
    centers = work.array("centers", lambda: centers_of(dataset, search.modality, search.seed))
    order, same = _order(dataset, search, work, centers, listen)
    groups = list(stretches(order, _PRODUCTS_IN_GROUP))
    listen(Progress(planned=2 * len(dataset.shards) + len(groups)))
    with ScratchRows(work.path("rows.bin"), dataset.card.dim, dataset.card.dtype) as stored:
        if not work.has("sorted"):
            _require_room(work.folder, len(order) * dataset.card.dim * np.dtype(dataset.card.dtype).itemsize)
            _sort(dataset, search.modality, stored, order, listen)
            work.keep("sorted", np.zeros(0))
        nearest = np.empty(len(dataset), _NEAREST)
        nearest["cosine"], nearest["row"] = -1, -1
        for number, group in enumerate(groups):
            compare = functools.partial(_compare, stored, group, search.threads)
            found = work.array(f"found-{number:06d}", compare)
            _take(nearest, order, group[0].start, found)
            listen(Progress(rows=len(found), tasks=1))
    nearest["cosine"][same.rows], nearest["row"][same.rows] = np.nan, same.of
    work.keep("counts", np.array([len(centers), int(order.again.sum())]))
    work.keep("nearest", nearest)


def _order(
    dataset: EmbeddingDataset, search: Search, work: Workspace, centers: np.ndarray, listen: Listener
) -> tuple[Order, SameContent]:
    """Who is compared with whom. Rows that repeat a file are left out."""

    def one_shard(shard: int) -> np.ndarray:
        return work.array(f"assigned-{shard:06d}", lambda: assign(dataset, shard, search.modality, centers))

    assigned = np.empty(len(dataset), ASSIGNED)
    for shard, found in in_order(one_shard, range(len(dataset.shards)), search.threads):
        assigned[dataset.shards[shard].start : dataset.shards[shard].stop] = found
        listen(Progress(tasks=1))
    priority = _priority(dataset, search.keep, assigned["to_center"])
    same = SameContent(*np.empty((2, 0), np.int64))
    if search.modality == "image":
        same = same_content(dataset, priority)
    assigned["other"][~near_border(assigned, dataset.card.dim)] = -1
    assigned["cluster"][same.rows] = -1
    return keeping_order(assigned["cluster"], assigned["other"], priority, len(centers)), same


def _priority(dataset: EmbeddingDataset, keep: str, to_center: np.ndarray) -> np.ndarray:
    """float32 [n]: the smaller, the sooner a row is kept."""
    if keep == "similarity":
        alike = dataset.column("similarity").to_numpy().astype(np.float32)
        priority: np.ndarray = -np.nan_to_num(alike, nan=-1)
        return priority
    if keep == "first":
        return np.zeros(len(dataset), np.float32)
    return -to_center if keep == "closest" else to_center.copy()


def _require_room(folder: Path, need: int) -> None:
    path = folder / "rows.bin"
    free = shutil.disk_usage(folder).free + (path.stat().st_size if path.exists() else 0)
    if free < need:
        raise DiskFull(
            f"{folder}: sorting the rows takes {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            "Free some space or give OUT on a larger disk",
        )


def _sort(dataset: EmbeddingDataset, modality: str, stored: ScratchRows, order: Order, listen: Listener) -> None:
    places = Places(order, len(dataset))
    for shard in range(len(dataset.shards)):
        for first, rows in blocks(dataset, shard, modality):
            offsets, where = places.of(first, first + len(rows))
            stored.write(rows[offsets], where)
        listen(Progress(tasks=1))
    stored.sync()


def _compare(stored: ScratchRows, group: Sequence[Stretch], threads: int | None) -> np.ndarray:
    """The _FOUND of the places of a group."""

    def one(part: Stretch) -> tuple[np.ndarray, np.ndarray]:
        def rows(start: int, stop: int) -> np.ndarray:
            return unit(stored.read(part.first + start, part.first + stop))

        return nearest_before(rows, part.start - part.first, part.stop - part.first)

    found = np.empty(group[-1].stop - group[0].start, _FOUND)
    for part, (cosine, position) in in_order(one, group, threads):
        here = found[part.start - group[0].start : part.stop - group[0].start]
        here["cosine"], here["place"] = cosine, np.where(position < 0, -1, position + part.first)
    return found


def _take(nearest: np.ndarray, order: Order, first: int, found: np.ndarray) -> None:
    """Enter what was found at the places from `first` on. Of a row's two nearest the nearer counts, then the first."""
    places = np.arange(first, first + len(found))
    for again in (False, True):  # apart, so that no row comes twice
        mine = np.flatnonzero((order.again[places] == again) & (found["place"] >= 0))
        rows = order.row[places[mine]]
        better = found["cosine"][mine] > nearest["cosine"][rows]
        mine, rows = mine[better], rows[better]
        nearest["cosine"][rows] = found["cosine"][mine]
        nearest["row"][rows] = order.row[found["place"][mine]]
