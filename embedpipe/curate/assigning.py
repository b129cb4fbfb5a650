"""Rows of all shards assigned to clusters, by workers here or on other machines; each shard's is kept as it is done."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import files
from ..errors import OutputUnwritable
from ..execute import Cluster, Demand, Desk, InlineExecutor, Task, Worker, open_places, several_at_once
from ..load import EmbeddingDataset
from ..progress import Listener, Progress, TaskReport
from .assign import ASSIGNED, assign
from .blocks import one_thread_each
from .workspace import Kept, Workspace

CENTERS = "centers"


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does it: `count` workers of an executor (see EXECUTORS), each with so many threads (None: their share)."""

    executor: str = "auto"
    count: int = 1
    threads: int | None = None
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(slots=True)
class AssignWork:
    """The recipe of a worker, picklable. A task is a shard: named as its array, its number in the data set as payload.

    folder: where centers lie, and arrays are kept. opened: the data set, where the worker lives in this process.
    """

    path: str
    modality: str
    folder: Path
    threads: int
    opened: EmbeddingDataset | None = None

    def start(self, worker: int) -> Worker:
        """Open the data set; refuse to work where the centers are not seen."""
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
                kept.keep(task.name, assign(dataset, place_of[task.payload], self.modality, centers))
            except OSError as problem:
                raise files.unwritable(str(self.folder), problem) from problem
            return TaskReport(tasks=1)

        def work(desk: Desk) -> None:
            with one_thread_each():
                several_at_once(one_shard, self.threads)(desk)

        return work


def assign_all(
    dataset: EmbeddingDataset, modality: str, workspace: Workspace, workers: Workers, listen: Listener
) -> np.ndarray:
    """The ASSIGNED of each row, to the centers kept in the workspace. Shards whose rows are kept there are taken as
    they are. It does not depend on the workers. Raises WorkerDied, OutputUnwritable, and as `assign` and `open_places`.
    """
    tasks = [
        Task(place, f"assigned-{workspace.key}-{place:06d}", shard.manifest.number)
        for place, shard in enumerate(dataset.shards)
    ]
    there = workspace.names()
    todo = [task for task in tasks if task.name not in there]
    listen(Progress(tasks=len(tasks) - len(todo)))
    if todo:
        demand = Demand(workers=workers.count, threads=workers.threads)
        with open_places(workers.executor, demand, workers.cluster) as (executor, places):
            work = AssignWork(dataset.path, modality, workspace.folder, places.threads)
            if isinstance(executor, InlineExecutor):
                work.opened = dataset
            executor.run(work, todo, listen).require_all()
    assigned = np.empty(len(dataset), ASSIGNED)
    for task, shard in zip(tasks, dataset.shards, strict=True):
        assigned[shard.start : shard.stop] = workspace.read(task.name)
    return assigned
