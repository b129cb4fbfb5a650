"""Cluster assignment: the nearest and second-nearest centroid of every row."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ... import files
from ...errors import OutputUnwritable
from ...execute import (
    Cluster,
    InlineExecutor,
    ResourceRequest,
    Task,
    TaskContext,
    WorkerLoop,
    open_places,
    several_at_once,
)
from ...execute.threads import one_thread_each
from ...index.kmeans import centroids, sample_size
from ...load import EmbeddingDataset
from ...load.row_blocks import release_pages, row_blocks, unit_rows
from ...progress import Listener, Progress, TaskReport
from .workspace import Kept, Workspace

# Up to this many rows all pairs are compared; beyond it, clusters have about a quarter as many rows.
_ONE_CLUSTER = 20_000
_ROWS_PER_CLUSTER = 5_000
_MOST_CLUSTERS = 50_000
# Size of the k-means sample, so that memory does not grow with the data.
_SAMPLE_BYTES = 1 << 28
# A row is compared in a second cluster if its cosines to the two nearest centroids differ by less than this over the
# root of the dimension: a copy moves a little in all directions, and only a small part of that across a border.
BORDER = 0.4
# At most this share of rows is compared twice, those nearest to a border: in some data all rows are near one.
MOST_TWICE = 0.25
_CENTERS_AT_ONCE = 2048

# cluster, other: the nearest and the second nearest, -1 if there is none. to_center: cosine to the nearest. gap: the
# difference to the second nearest cosine.
ASSIGNED = np.dtype([("cluster", np.int32), ("other", np.int32), ("to_center", np.float32), ("gap", np.float32)])


def cluster_count(rows: int) -> int:
    """One cluster (exact) for small data sets; clusters of about 5,000 rows for larger ones."""
    return 1 if rows <= _ONE_CLUSTER else min(_MOST_CLUSTERS, -(-rows // _ROWS_PER_CLUSTER))


def centers_of(dataset: EmbeddingDataset, modality: str, seed: int) -> np.ndarray:
    """Unit-length centroids, float32 [clusters, dim]: from all rows if there is one cluster, else from a sample.

    The sample is uniform over all rows, whatever their shard.
    """
    clusters = cluster_count(len(dataset))
    if clusters == 1:
        total = np.zeros(dataset.card.dim)
        for shard in range(len(dataset.shards)):
            for _, rows in row_blocks(dataset, shard, modality):
                total += rows.sum(axis=0, dtype=np.float64)
        return unit_rows(total[None].astype(np.float32))
    most = max(clusters, _SAMPLE_BYTES // (dataset.card.dim * 4))
    count = min(len(dataset), sample_size(clusters), most)
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), count, replace=False, shuffle=False))
    sample = np.empty((count, dataset.card.dim), np.float32)
    for number, place in enumerate(dataset.shards):
        here = slice(*np.searchsorted(chosen, (place.start, place.stop)))
        array = dataset.array(number, modality)
        sample[here] = array[chosen[here] - place.start]
        release_pages(array)
    return centroids(sample, clusters, seed)


def assign_clusters(dataset: EmbeddingDataset, shard: int, modality: str, centers: np.ndarray) -> np.ndarray:
    """The ASSIGNED of each row of the shard at that index in `dataset.shards`."""
    start = dataset.shards[shard].start
    out = np.empty(dataset.shards[shard].stop - start, ASSIGNED)
    for first, rows in row_blocks(dataset, shard, modality):
        number, cosine = _nearest_two(unit_rows(rows), centers)
        part = out[first - start : first - start + len(rows)]
        part["cluster"], part["other"] = number[:, 0], number[:, 1]
        part["to_center"], part["gap"] = cosine[:, 0], cosine[:, 0] - cosine[:, 1]
    return out


def near_border(assigned: np.ndarray, dim: int) -> np.ndarray:
    """bool [n]: the rows to compare in their second cluster as well."""
    width = np.float32(BORDER / np.sqrt(dim))
    most = int(MOST_TWICE * len(assigned))
    if (assigned["gap"] < width).sum() > most:
        width = np.partition(assigned["gap"], most)[most]
    return np.asarray(assigned["gap"] < width)


def _nearest_two(rows: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices int32 [n, 2] and cosines float32 [n, 2] of each row's two nearest centers; -1, -inf: none."""
    number = np.full((len(rows), 2), -1, np.int32)
    cosine = np.full((len(rows), 2), -np.inf, np.float32)
    every = np.arange(len(rows))
    for first in range(0, len(centers), _CENTERS_AT_ONCE):
        product = rows @ centers[first : first + _CENTERS_AT_ONCE].T
        for _ in range(2):
            best = product.argmax(axis=1)
            value = product[every, best]
            product[every, best] = -np.inf
            _take_if_nearer(number, cosine, (first + best).astype(np.int32), value)
    return number, cosine


def _take_if_nearer(number: np.ndarray, cosine: np.ndarray, found: np.ndarray, value: np.ndarray) -> None:
    nearest = value > cosine[:, 0]
    number[nearest, 1], cosine[nearest, 1] = number[nearest, 0], cosine[nearest, 0]
    number[nearest, 0], cosine[nearest, 0] = found[nearest], value[nearest]
    second = ~nearest & (value > cosine[:, 1])
    number[second, 1], cosine[second, 1] = found[second], value[second]


CENTERS = "centers"


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers: `count` of an executor (see EXECUTORS), with `threads` threads each (None: an equal share)."""

    executor: str = "auto"
    count: int = 1
    threads: int | None = None
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(slots=True)
class AssignWork:
    """Picklable worker factory. A task is a shard: its name is its array's, its payload its index in the data set.

    folder: for centers and arrays. opened: the data set, if the worker runs in this process.
    """

    path: str
    modality: str
    folder: Path
    threads: int
    opened: EmbeddingDataset | None = None

    def start(self, worker: int) -> WorkerLoop:
        """Open the data set; refuses to start if the centers are not visible from this machine."""
        kept = Kept(self.folder)
        if not kept.has(CENTERS):
            raise OutputUnwritable(
                f"{self.folder}: {socket.gethostname()} does not see what the run has begun there",
                "Give an output folder that all machines share at the same place",
            )
        dataset = self.opened or EmbeddingDataset(self.path)
        centers = kept.read(CENTERS)
        place_of = {shard.manifest.number: place for place, shard in enumerate(dataset.shards)}

        def one_shard(task: Task, listen: Listener) -> TaskReport:
            try:
                kept.keep(task.name, assign_clusters(dataset, place_of[task.payload], self.modality, centers))
            except OSError as problem:
                raise files.unwritable(str(self.folder), problem) from problem
            return TaskReport(tasks=1)

        def work(desk: TaskContext) -> None:
            with one_thread_each():
                several_at_once(one_shard, self.threads)(desk)

        return work


def assign_all(
    dataset: EmbeddingDataset, modality: str, workspace: Workspace, workers: Workers, listen: Listener
) -> np.ndarray:
    """The ASSIGNED of each row, for the centers in the workspace. Shards with stored results there are not recomputed.
    The result does not depend on the workers. Raises WorkerDied, OutputUnwritable, and what `assign_clusters` and
    `open_places` raise.
    """
    tasks = [
        Task(place, f"assigned-{workspace.key}-{place:06d}", shard.manifest.number)
        for place, shard in enumerate(dataset.shards)
    ]
    there = workspace.names()
    todo = [task for task in tasks if task.name not in there]
    listen(Progress(tasks=len(tasks) - len(todo)))
    if todo:
        demand = ResourceRequest(workers=workers.count, threads=workers.threads)
        with open_places(workers.executor, demand, workers.cluster) as (executor, places):
            work = AssignWork(dataset.path, modality, workspace.folder, places.threads)
            if isinstance(executor, InlineExecutor):
                work.opened = dataset
            executor.run(work, todo, listen).require_all()
    assigned = np.empty(len(dataset), ASSIGNED)
    for task, shard in zip(tasks, dataset.shards, strict=True):
        assigned[shard.start : shard.stop] = workspace.read(task.name)
    return assigned
