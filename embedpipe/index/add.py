"""The add step of an inverted-file index: workers, here or on other machines, encode shards into parts."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import files
from ..errors import OutputUnwritable
from ..execute import InlineExecutor, ResourceRequest, Task, WorkerLoop, in_order, one_by_one, open_places
from ..load import EmbeddingDataset
from ..load.row_blocks import row_blocks
from ..progress import Listener, Progress, TaskReport
from .card import IndexedShard
from .ids import ids_of
from .index_file import open_file
from .inverted_lists import ListPart, emptied, encode_rows, part_name, read_list_part, read_parts, write_part
from .library import faiss
from .plan import BuildPlan, IndexConfig

PLAN = "plan.json"
_TASKS_EACH = 4  # per worker at least, so that none waits long for the last


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained index for encoding rows. digest: of its bytes. full: it has rows, which are removed on opening."""

    location: str
    digest: str
    full: bool

    def opened(self) -> faiss.Index:
        """The index, without rows."""
        if self.full:
            return emptied(open_file(self.location, lists=True))
        return open_file(self.location, lists=True, mapped=False)


@dataclass(slots=True)
class AddWork:
    """Picklable worker factory. A task is a part: its name, with its shards as payload.

    opened: the data set, if the worker runs in this process.
    """

    path: str
    modality: str
    building: str
    trained: Trained
    lists: int
    threads: int
    opened: EmbeddingDataset | None = None

    def start(self, worker: int) -> WorkerLoop:
        """Open the data set and the trained index; refuses to start if the build folder is not visible from here."""
        if not files.exists(files.join(self.building, PLAN)):
            raise OutputUnwritable(
                f"{self.building}: {socket.gethostname()} does not see the build that was begun there",
                "Give a folder that all machines share at the same place",
            )
        dataset = self.opened or EmbeddingDataset(self.path)
        place_of = {shard.manifest.number: place for place, shard in enumerate(dataset.shards)}
        index = self.trained.opened()

        def coded(block: tuple[int, int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            # Multithreaded matrix products are not bit-identical for different numbers of threads.
            faiss.omp_set_num_threads(1)
            return encode_rows(index, block[2])

        def rows_of(shards: Sequence[IndexedShard]) -> Iterator[tuple[int, int, np.ndarray]]:
            for shard in shards:
                place = place_of[shard.number]
                for row, rows in row_blocks(dataset, place, self.modality):
                    yield shard.number, row - dataset.shards[place].start, rows

        def make_part(task: Task, listen: Listener) -> TaskReport:
            made: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
            for (shard, start, rows), found in in_order(coded, rows_of(task.payload), self.threads):
                made.append((*found, ids_of(shard, start, start + len(rows))))
                listen(Progress(rows=len(rows)))
            number, codes, ids = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
            made.clear()
            write_part(self.building, task.name, task.payload, self.lists, number, codes, ids)
            return TaskReport(tasks=1, rows=len(ids))

        return one_by_one(make_part)


def add_parts(
    dataset: EmbeddingDataset, config: IndexConfig, plan: BuildPlan, building: str, trained: Trained, listen: Listener
) -> list[ListPart]:
    """The parts with the shards to add, in order; existing ones in `building` are reused.

    The total contents of the parts do not depend on the workers. Raises WorkerDied, DatasetError (a row that is not
    finite), OutputUnwritable, and as `open_places` does.
    """
    there = {part.name: part for part in read_parts(building)}
    most = plan.part_rows
    if config.workers > 1:
        most = min(most, -(-sum(shard.rows for shard in plan.add) // (_TASKS_EACH * config.workers)))
    groups = list(_groups(plan.add, list(there.values()), trained.digest, most))
    names = [part_name(trained.digest, group) for group in groups]
    for name in there.keys() - set(names):
        files.remove(files.join(building, f"{name}.json"))
    todo = [Task(i, names[i], group) for i, group in enumerate(groups) if names[i] not in there]
    listen(Progress(rows=sum(sum(there[name].sizes) for name in names if name in there)))
    if todo:
        with open_places(config.executor, ResourceRequest(workers=config.workers), config.cluster) as (
            executor,
            places,
        ):
            work = AddWork(dataset.path, config.modality, building, trained, plan.kind.lists, places.threads)
            if isinstance(executor, InlineExecutor):
                work.opened = dataset
            executor.run(work, todo, listen).require_all()
    return [there.get(name) or read_list_part(building, name) for name in names]


def _groups(
    shards: tuple[IndexedShard, ...], parts: Sequence[ListPart], made_with: str, most_rows: int
) -> Iterator[tuple[IndexedShard, ...]]:
    """Neighbouring shards with about that many rows, at least one shard per group; existing parts keep their groups.

    Always neighbours, so that the rows of a list are in shard order, whichever part was finished first.
    """
    whole: dict[IndexedShard, list[tuple[IndexedShard, ...]]] = {}
    for done in parts:
        if done.name == part_name(made_with, done.shards):
            whole.setdefault(done.shards[0], []).append(done.shards)
    first = place = rows = 0
    while place < len(shards):
        fitting = [part for part in whole.get(shards[place], ()) if shards[place : place + len(part)] == part]
        part = max(fitting, key=len, default=())
        if place > first and (part or rows + shards[place].rows > most_rows):
            yield shards[first:place]
            first, rows = place, 0
        if part:
            yield part
            first = place = place + len(part)
        else:
            rows += shards[place].rows
            place += 1
    if place > first:
        yield shards[first:place]
