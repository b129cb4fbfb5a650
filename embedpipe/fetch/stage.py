"""`fetch`: url table → image shards. Plans, hands out what is not committed yet, commits shard by shard."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from .. import files, lock, manifest
from ..manifest import ShardManifest
from ..progress import Listener, Progress, add_counts, silent
from . import pack
from .config import FetchConfig, FetchReport
from .download import DownloadPool, require_img2dataset
from .guard import refusal
from .outcome import Failure
from .plan import FetchPlan, ShardRange, make_plan, shard_rows
from .tasks import Task, WorkerSettings

_HIDDEN = ".fetch"
_LOG = "download.log"
_SMALLEST_PART = 200  # rows; below that, another process costs more than it brings
_DEADLINE_PER_TIMEOUT = 3


def remaining(plan: FetchPlan, out: str) -> list[ShardRange]:
    """The planned shards that are not committed."""
    committed = set(manifest.committed_numbers(out))
    return [shard for shard in plan.shards if shard.number not in committed]


def log_file(out: str) -> str | None:
    """Where the download processes of a local output put what they have to say."""
    return files.join(out, _HIDDEN, _LOG) if files.is_local(out) else None


def fetch(urls: str, out: str, config: FetchConfig | None = None, listener: Listener = silent) -> FetchReport:
    """Download the images of a url table into numbered shards in `out`. The same call again goes on where it ended.

    `urls` is a csv, tsv, txt, json, jsonl or parquet file (plain or .gz), a folder or a glob of them, on any fsspec
    path. Every row of the table ends as one row of a shard's parquet, as a success or with an error class.
    Raises InputError, EmptyInput, RunMismatch, OutputBusy, OutputUnwritable, DiskFull, WorkerDied, MissingExtra.
    """
    config = config or FetchConfig()
    started = time.perf_counter()
    require_img2dataset()
    plan = make_plan(urls, out, config)
    with lock.exclusive(out):
        if manifest.read_run(out) != plan.previous:  # another run was here in between
            plan = make_plan(urls, out, config)
        if plan.run != plan.previous:
            manifest.write_run(out, plan.run)
        redone = _retract_damaged(out, plan.run.shard_digits)
        todo = remaining(plan, out)
        listener(Progress(planned=len(todo)))
        if todo:
            _fetch_shards(plan, todo, out, config, listener)
        return _report(plan, out, (len(todo), redone), time.perf_counter() - started)


def _retract_damaged(out: str, digits: int) -> int:
    """Sweep what killed writers left, and forget shards whose files are gone or of another size: how many."""
    files.sweep_temporaries(out)
    files.sweep_temporaries(files.join(out, "manifest"))
    damaged = [record for record in manifest.read_manifests(out, digits) if not _is_there(out, record)]
    for record in damaged:
        manifest.retract(out, record.number, digits)
    return len(damaged)


def _is_there(out: str, record: ShardManifest) -> bool:
    locations = [(files.join(out, file.path), file.bytes) for file in record.files]
    return all(files.exists(location) and files.stat(location).bytes == size for location, size in locations)


def _fetch_shards(plan: FetchPlan, todo: list[ShardRange], out: str, config: FetchConfig, listener: Listener) -> None:
    cuts = max(1, config.processes // len(todo))
    parts = sum(min(cuts, math.ceil(shard.rows / _SMALLEST_PART)) for shard in todo)
    with _staging(out) as (folder, log):
        desk = _Desk(plan, out, config, folder, cuts, listener)
        with DownloadPool(_settings(config), min(config.processes, parts), log) as pool:
            for task in pool.results(desk.tasks(todo), listener):
                desk.take_in(task)


@contextlib.contextmanager
def _staging(out: str) -> Iterator[tuple[Path, str]]:
    """A folder for parts on the way, and the log's path: hidden in a local output, so that a full disk shows where it
    matters and a killed run leaves nothing elsewhere; temporary otherwise."""
    if not files.is_local(out):
        with tempfile.TemporaryDirectory(prefix="embedpipe-fetch-") as temporary:
            yield Path(temporary), files.join(temporary, _LOG)
        return
    hidden = files.local_path(out) / _HIDDEN
    folder = hidden / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        (hidden / _LOG).write_bytes(b"")
        yield folder, str(hidden / _LOG)
    except OSError as problem:
        raise files.unwritable(out, problem) from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(config: FetchConfig) -> WorkerSettings:
    contact = f" ({config.user_agent})" if config.user_agent else ""
    return WorkerSettings(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        only_if_bigger=config.only_if_bigger,
        min_image_size=config.min_image_size,
        threads=config.threads,
        timeout_s=config.timeout_s,
        deadline_s=config.timeout_s * _DEADLINE_PER_TIMEOUT,
        retries=config.retries,
        user_agent=f"embedpipe/{importlib.metadata.version('embedpipe')}{contact}",
        allow_hosts=config.allow_hosts,
    )


@dataclass(slots=True)
class _OpenShard:
    shard: ShardRange
    rows: pa.Table
    refused: dict[int, Failure]
    parts: list[Task] = field(default_factory=list)
    waiting: int = 0


class _Desk:
    """Cuts shards into tasks, puts their results together again, and commits."""

    def __init__(
        self, plan: FetchPlan, out: str, config: FetchConfig, folder: Path, cuts: int, listener: Listener
    ) -> None:
        self.plan = plan
        self.out = out
        self.config = config
        self.folder = folder
        self.cuts = cuts
        self.listener = listener
        self.open: dict[int, _OpenShard] = {}

    def tasks(self, todo: list[ShardRange]) -> Iterator[Task]:
        """The parts of the shards in `todo`, their files written as they are asked for."""
        for shard, rows in shard_rows(self.plan, frozenset(shard.number for shard in todo)):
            urls = rows.column("url").to_pylist()
            refusals = {i: refusal(url, self.config.allow_hosts) for i, url in enumerate(urls)}
            refused = {i: failure for i, failure in refusals.items() if failure}
            self.listener(Progress(rows=len(refused), rejected=len(refused)))
            opened = _OpenShard(shard, rows, refused)
            opened.parts = list(self._parts(shard, [(i, url) for i, url in enumerate(urls) if i not in refused]))
            opened.waiting = len(opened.parts)
            self.open[shard.number] = opened
            if opened.parts:
                yield from opened.parts
            else:
                self._commit(opened)

    def _parts(self, shard: ShardRange, urls: list[tuple[int, str]]) -> Iterator[Task]:
        """Runs of urls, one task each. More than one only where there are fewer shards than processes."""
        size = max(_SMALLEST_PART, math.ceil(len(urls) / self.cuts))
        for part, first in enumerate(range(0, len(urls), size)):
            piece = urls[first : first + size]
            task = Task(shard.number, part, len(piece), str(self.folder / f"{shard.number}-{part}"))
            table = pa.table(
                {"row": pa.array([i for i, _ in piece], pa.int32()), "url": pa.array([url for _, url in piece])}
            )
            with pa.OSFile(task.urls_file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            yield task

    def take_in(self, task: Task) -> None:
        """Note that a part is there, and commit its shard if it was the last."""
        opened = self.open[task.shard]
        opened.waiting -= 1
        if not opened.waiting:
            self._commit(opened)

    def _commit(self, opened: _OpenShard) -> None:
        fetched = pack.FetchedShard(opened.shard, opened.rows, opened.refused, opened.parts)
        pack.commit(self.out, fetched, self.plan.run.shard_digits, self.config.samples_per_shard)
        for part in opened.parts:
            for name in (part.images_file, part.outcomes_file):
                Path(name).unlink()
        del self.open[opened.shard.number]
        self.listener(Progress(tasks=1))


def _report(plan: FetchPlan, out: str, now: tuple[int, int], seconds: float) -> FetchReport:
    failed: dict[str, int] = {}
    rows = succeeded = size = shards = 0
    for record in manifest.read_manifests(out, plan.run.shard_digits):
        rows += record.rows_in
        succeeded += record.rows_out
        failed = add_counts(failed, record.rejects)
        size += record.bytes()
        shards += 1
    return FetchReport(rows, succeeded, failed, size, shards, *now, seconds, plan.layout.caption)
