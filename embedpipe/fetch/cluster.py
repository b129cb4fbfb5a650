"""Distribute parts to download workers on a cluster; they exchange files through a shared folder.

Each worker has its own download process, as on this machine. The process that started the run cuts shards into parts,
and packs the results into shards, committed in order.
"""

from __future__ import annotations

import dataclasses
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import execute, files
from ..errors import InputError, OutputUnwritable
from ..execute import Cluster, ResourceRequest, TaskContext, WorkerLoop, one_ahead, open_places
from ..progress import Listener, Note, Progress, TaskReport
from . import resizers
from .download.messages import DownloadTask, WorkerSettings
from .download.pool import DownloadPool
from .shards.assembly import Assembly


@dataclass(frozen=True, slots=True)
class DownloadWork:
    """Picklable worker factory. A task's payload is a part. parts: the folder of this run's parts."""

    settings: WorkerSettings
    parts: Path
    log: str

    def start(self, worker: int) -> WorkerLoop:
        """Check that parts, and the images of a folder, are visible from here; then start a download process."""
        resizers.choose_resizer(self.settings.resizer)
        if not self.parts.is_dir():
            raise OutputUnwritable(
                f"{self.parts}: {socket.gethostname()} does not see what the run has begun there",
                "Give an output folder that all machines share at the same place",
            )
        images = self.settings.root or self.settings.folder
        if images and not files.exists(images):
            raise InputError(
                f"{images}: {socket.gethostname()} does not see it",
                "Give a folder that all machines share at the same place, or an object store",
            )

        def work(desk: TaskContext) -> None:
            with DownloadPool(self.settings, 1, self.log) as pool:
                for task in one_ahead(desk):
                    desk.done(task, _download(pool, task, desk))

        return work


def _download(pool: DownloadPool, task: execute.Task, desk: TaskContext) -> TaskReport:
    part: DownloadTask = task.payload
    # Separate files: a worker presumed dead may still write to its own.
    mine = dataclasses.replace(part, stem=f"{part.stem}-{uuid.uuid4().hex[:12]}")
    shutil.copyfile(part.urls_file, mine.urls_file)
    said = TaskReport()

    def hear(step: Progress) -> None:
        nonlocal said
        said += TaskReport(rows=step.rows, rejected=step.rejected, rejects=step.rejects)
        desk.tell(task, Progress(rows=step.rows, rejected=step.rejected, bytes=step.bytes))

    for _ in pool.results([mine], hear):
        pass
    return said + TaskReport(tasks=1, notes=(Note(task.number, "stem", mine.stem),))


class _Parts:
    """Parts as tasks, created lazily; at most `most` of them."""

    def __init__(self, parts: Iterable[DownloadTask], most: int) -> None:
        self._parts = parts
        self._most = most
        self.drawn: dict[str, DownloadTask] = {}

    def __len__(self) -> int:
        return self._most

    def __iter__(self) -> Iterator[execute.Task]:
        for number, part in enumerate(self._parts):
            name = f"shard {part.shard}, part {part.part}"
            self.drawn[name] = part
            yield execute.Task(number, name, part)


def download_on_cluster(
    work: DownloadWork, assembly: Assembly, most: int, workers: int, cluster: Cluster, listen: Listener
) -> None:
    """Download all parts of `assembly`, at most `most`, on the workers; `assembly` takes in each finished part.

    Raises InputError (no such cluster, or too few resources), WorkerDied (also if a part killed three workers),
    OutputUnwritable.
    """
    parts = _Parts(assembly.tasks(), most)

    def hear(step: Progress) -> None:
        report = step.finished.report if step.finished is not None else TaskReport()
        listen(Progress(rows=step.rows, rejected=step.rejected, rejects=report.rejects, bytes=step.bytes))
        if step.finished is not None:
            part = parts.drawn.pop(step.finished.task)
            Path(part.urls_file).unlink()
            assembly.take_in(dataclasses.replace(part, stem=report.notes[0].text))

    with open_places("ray", ResourceRequest(workers=workers, threads=1), cluster) as (executor, _):
        executor.run(work, parts, hear).require_all()
