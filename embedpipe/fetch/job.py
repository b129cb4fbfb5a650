"""The fetch job: url table → image shards. Plans, dispatches uncommitted shards, commits shard by shard."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import files, lock, manifest
from ..errors import EmbedpipeError, InputError, OutputUnwritable
from ..manifest import ShardManifest, Totals
from ..progress import Listener, Progress, silent
from ..scarcity import most_open_files
from ..taken_down import read_taken_down, refuse_interrupted
from . import resizers, retry
from .cluster import DownloadWork, download_on_cluster
from .config import FetchConfig, FetchReport
from .download.image import PictureRules
from .download.messages import WorkerSettings
from .download.pool import DownloadPool
from .download.threads import affordable_threads
from .outcome import HostFailures
from .plan import FetchPlan, ShardRange, make_plan, previous_run
from .planned_rows import planned_urls
from .report import RunReport
from .shards import commit
from .shards.assembly import SMALLEST_PART, Assembly, RunContext
from .shards.discard import HIDDEN, discard_shards
from .shards.seen import RepeatedUrls, StoredContents, index_urls

logger = logging.getLogger(__name__)

_LOG = "download.log"
_HOSTS = 10  # shown at the end; the report lists more
_DEADLINE_PER_TIMEOUT = 3


def plan_fetch(urls: str, out: str, config: FetchConfig | None = None) -> tuple[FetchPlan, list[int]]:
    """What `fetch` would do: its plan, and the numbers of the shards to fetch, damaged ones too. Raises as it does."""
    config = config or FetchConfig()
    _check(out, config)
    plan = make_plan(urls, out, config)
    if config.overwrite:
        return plan, [shard.number for shard in plan.shards]
    missing = {shard.number for shard in remaining_shards(plan, out)}
    damaged = {record.number for record in _damaged(out, plan.run.shard_digits)}
    return plan, sorted(missing | damaged)


def rows_to_retry(plan: FetchPlan, to_fetch: list[int], out: str, config: FetchConfig) -> int:
    """The number of rows that `fetch` would retry in new shards, as far as the shards that are there tell.

    0 while it has a round of retries to finish first. `plan` and `to_fetch` are those of `plan_fetch`.
    """
    missing = set(to_fetch)
    if not config.retry_failed or any(shard.retry and shard.number in missing for shard in plan.shards):
        return 0
    there = tuple(shard for shard in plan.shards if shard.number not in missing)
    return sum(rows.num_rows for rows in retry.failed_rows(dataclasses.replace(plan, shards=there), out, config))


def remaining_shards(plan: FetchPlan, out: str) -> list[ShardRange]:
    """The planned shards that are not yet committed."""
    committed = set(manifest.committed_numbers(out))
    return [shard for shard in plan.shards if shard.number not in committed]


def log_file(out: str) -> str | None:
    """The log file of the download processes, for a local output."""
    return files.join(out, HIDDEN, _LOG) if files.is_local(out) else None


def fetch(urls: str, out: str, config: FetchConfig | None = None, listen: Listener = silent) -> FetchReport:
    """Download the images of a url table, or read those of a folder, into numbered shards in `out`.

    A repeated call resumes.

    `urls` is a csv, tsv, txt, json, jsonl or parquet file (plain or .gz), a folder or a glob of them, on any fsspec
    path. Every row of the table ends as one row of a shard's parquet, as a success or with an error class.
    Raises InputError, EmptyInput, RunMismatch, OutputBusy, OutputUnwritable, DiskFull, WorkerDied, MissingExtra.
    """
    config = config or FetchConfig()
    started = time.perf_counter()
    _check(out, config)
    plan = make_plan(urls, out, config)
    with lock.exclusive(out):
        refuse_interrupted(out)
        if config.overwrite and (found := previous_run(out)) is not None:
            discard_shards(out, found)  # not earlier: a wrong option must not delete a data set
        if manifest.read_run(out) != plan.previous:  # another run changed it in between
            plan = make_plan(urls, out, config)
        redone = _retract_damaged(out, plan.run.shard_digits)
        todo = remaining_shards(plan, out)
        begun = manifest.with_pending(out, plan.run)
        if begun != plan.previous:
            manifest.write_run(out, begun)
        run = RunReport(out, config, listen)
        try:
            done = _fetch_planned(plan, todo, out, config, run)
        except (EmbedpipeError, KeyboardInterrupt) as problem:
            if run.shards:
                interrupted = isinstance(problem, KeyboardInterrupt)
                with contextlib.suppress(OutputUnwritable):  # which may itself be the problem
                    run.write("interrupted" if interrupted else "failed", _total(plan, out))
            raise
        manifest.settle(out)
        written = run.write("done", _total(plan, out)) if done else None
        seconds = time.perf_counter() - started
        return _report(plan, out, (done, redone), seconds, (run.hosts.worst(_HOSTS), written))


def _check(out: str, config: FetchConfig) -> None:
    resizers.choose_resizer(config.resizer)
    if config.executor == "ray" and not files.is_local(out):
        raise InputError(
            f"{out}: on a cluster, parts on their way lie in a folder of the output that all machines share",
            "Give such a folder, or drop `executor='ray'`",
        )


def _fetch_planned(plan: FetchPlan, todo: list[ShardRange], out: str, config: FetchConfig, run: RunReport) -> int:
    """Fetch missing shards, then retry failed rows if requested; returns the number of shards."""
    run(Progress(planned=len(todo), planned_rows=sum(shard.rows for shard in todo)))
    if todo:
        _fetch_shards(plan, todo, out, config, run)
    # An unfinished round of retries is completed first, instead of starting another one.
    if not config.retry_failed or any(shard.retry for shard in todo):
        return len(todo)
    grown = retry.plan_round(plan, out, config)
    if grown is None:
        return len(todo)
    manifest.write_run(out, manifest.with_pending(out, grown.run))
    again = remaining_shards(grown, out)
    both = todo + again
    run(Progress(planned=len(both), planned_rows=sum(shard.rows for shard in both)))
    _fetch_shards(grown, again, out, config, run)
    return len(both)


def _total(plan: FetchPlan, out: str) -> Totals:
    return manifest.totals(manifest.read_manifests(out, plan.run.shard_digits))


def _retract_damaged(out: str, digits: int) -> int:
    """Remove leftovers of killed writers, and retract shards with missing or resized files; returns how many."""
    files.sweep_temporaries(out)
    files.sweep_temporaries(files.join(out, "manifest"))
    damaged = _damaged(out, digits)
    for record in damaged:
        manifest.retract(out, record.number, digits)
    return len(damaged)


def _damaged(out: str, digits: int) -> list[ShardManifest]:
    return [record for record in manifest.read_manifests(out, digits) if not manifest.files_are_there(out, record)]


def _fetch_shards(plan: FetchPlan, todo: list[ShardRange], out: str, config: FetchConfig, run: RunReport) -> None:
    cuts = max(1, config.processes // len(todo))
    parts = sum(min(cuts, math.ceil(shard.rows / SMALLEST_PART)) for shard in todo)
    with _staging(out) as staging, contextlib.ExitStack() as opened:
        contents = None
        if config.drop_duplicates:
            contents = opened.enter_context(_stored_contents(plan, out, staging.kept))
        repeats = _repeated_urls(plan, staging.kept)
        context = RunContext(plan, out, config, repeats, contents, staging.parts, read_taken_down(out))
        assembly = Assembly(context, todo, cuts, run, run.hosts)
        settings = _settings(config, plan)
        if config.executor == "ray":
            work = DownloadWork(settings, staging.parts, staging.log)
            download_on_cluster(work, assembly, parts, min(config.processes, parts), config.cluster, run)
            return
        with DownloadPool(settings, min(config.processes, parts), staging.log) as pool:
            for task in pool.results(assembly.tasks(), run):
                assembly.take_in(task)


def _repeated_urls(plan: FetchPlan, folder: Path) -> RepeatedUrls:
    """The repeats among all urls of the plan, from the last run's file if the plan is unchanged."""
    file = folder / f"repeats-{plan.fingerprint()[:16]}.npy"
    if not file.exists():
        for outdated in folder.glob("repeats-*.npy"):
            outdated.unlink()
        index_urls(planned_urls(plan), plan.rows, file)
    return RepeatedUrls(file)


@contextlib.contextmanager
def _stored_contents(plan: FetchPlan, out: str, folder: Path) -> Iterator[StoredContents]:
    """The index of stored contents, updated from the committed shards."""
    with contextlib.closing(StoredContents(folder / "contents.sqlite")) as contents:
        committed = set(manifest.committed_numbers(out))
        for number in contents.known() - committed:
            contents.forget(number)
        for number in sorted(committed - contents.known()):
            contents.add(number, commit.stored_contents(out, number, plan.run.shard_digits))
        yield contents


@dataclass(frozen=True, slots=True)
class _Staging:
    """parts: unfinished ones. kept: files that the next run can reuse. log: of the download processes."""

    parts: Path
    kept: Path
    log: str


@contextlib.contextmanager
def _staging(out: str) -> Iterator[_Staging]:
    """Hidden in a local output, to use its disk and leave nothing elsewhere after a kill; temporary otherwise."""
    if not files.is_local(out):
        with tempfile.TemporaryDirectory(prefix="embedpipe-fetch-") as temporary:
            yield _Staging(Path(temporary), Path(temporary), files.join(temporary, _LOG))
        return
    hidden = files.local_path(out) / HIDDEN
    shutil.rmtree(hidden / "parts", ignore_errors=True)
    # For this run only: a machine still working for an earlier run cannot write here.
    folder = hidden / "parts" / uuid.uuid4().hex
    for torn in hidden.glob("urls-*"):
        shutil.rmtree(torn, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        (hidden / _LOG).write_bytes(b"")
        yield _Staging(folder, hidden, str(hidden / _LOG))
    except OSError as problem:
        raise files.unwritable(out, problem) from problem
    finally:
        shutil.rmtree(hidden / "parts", ignore_errors=True)


def _settings(config: FetchConfig, plan: FetchPlan) -> WorkerSettings:
    threads = min(config.threads, affordable_threads())
    if threads < config.threads and not plan.folder:
        logger.warning(
            "downloading with %d threads a process instead of %d: it may open %d files (`ulimit -n`)",
            threads,
            config.threads,
            most_open_files(),
        )
    contact = f" ({config.user_agent})" if config.user_agent else ""
    return WorkerSettings(
        folder=plan.folder or plan.root,
        root="" if plan.follows_links else plan.root,
        pictures=PictureRules(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            only_if_bigger=config.only_if_bigger,
            min_image_size=config.min_image_size,
            max_aspect_ratio=config.max_aspect_ratio,
            orient=config.orient,
            background=config.background,
            image_format=config.image_format,
        ),
        quality=config.stored_quality,
        resizer=config.resizer,
        threads=threads,
        timeout_s=config.timeout_s,
        deadline_s=config.timeout_s * _DEADLINE_PER_TIMEOUT,
        retries=config.retries,
        user_agent=f"embedpipe/{importlib.metadata.version('embedpipe')}{contact}",
        allow_hosts=config.allow_hosts,
        max_bytes=config.max_bytes,
        # A fixed share per process: they do not know of each other's requests.
        per_host=max(1, config.per_host // config.processes),
        robots=config.robots,
        ca_file=config.ca_file,
        rights=plan.rights,
        max_sample_seconds=config.max_sample_seconds,
    )


def _report(
    plan: FetchPlan,
    out: str,
    now: tuple[int, int],
    seconds: float,
    written: tuple[tuple[HostFailures, ...], str | None],
) -> FetchReport:
    entries = list(manifest.read_manifests(out, plan.run.shard_digits))
    total = manifest.totals(entries)
    size = sum(entry.bytes() for entry in entries)
    counts = (total.rows, total.succeeded, total.failed, size, len(entries))
    accounts = (manifest.total_accounts(entries), plan.run.listing)
    return FetchReport(*counts, *now, seconds, plan.layout.caption, total.retried, *written, *accounts)
