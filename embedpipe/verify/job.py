"""The verify job: list the output once, dispatch shards to workers, combine their findings."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .. import files, manifest
from ..errors import DatasetError, InputError, OptionError
from ..execute import Cluster, Outcome, ResourceRequest, Task, open_places
from ..folder_kind import DECODER, EXPORT, NOTHING, RUN, SELECTION, FolderKind, what_is
from ..lock import exclusive
from ..manifest import EMBEDDINGS, IMAGE_SHARDS, RunCard
from ..progress import Listener, Progress, silent
from ..store import open_format
from .accounting import input_again, sum_fault
from .listing import shard_paths, stored_files
from .runs import checkpoint_steps, run_faults
from .worker import FAULT, LEFTOVER, UNREAD, VerifyWork

RUN_FORMAT = "run"
KINDS = {EMBEDDINGS: "embedding data set", IMAGE_SHARDS: "image shards", RUN_FORMAT: "training run"}


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """The options of `verify`.

    deep: read everything and check every checksum, number and row. repair: drop damaged shards, so that the command
    that made them makes them again. workers: processes that check shards. executor: a name in EXECUTORS or auto;
    cluster: which one, for ray.
    """

    deep: bool = False
    repair: bool = False
    workers: int = 1
    executor: str = "auto"
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in one shard (or, with number None, in the output as a whole).

    proven: whether the file is certainly damaged; an unreadable one may be intact, and is never dropped.
    """

    number: int | None
    name: str
    what: str
    proven: bool = True


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of `verify`.

    missing: planned shards that are not committed yet (not a fault: the run may be unfinished). leftovers: files that
    belong to no committed shard (not a fault: a killed run leaves them). dropped: shards dropped by `repair`. dated:
    version 0.1 wrote the data set, before the activation was recorded (not a fault).
    """

    path: str
    format: str
    deep: bool
    planned: int
    committed: int
    missing: int
    rows: int
    rejected: int
    bytes: int
    faults: tuple[Fault, ...]
    leftovers: tuple[str, ...]
    dropped: tuple[int, ...] = ()
    dated: bool = False

    @property
    def whole(self) -> bool:
        """Whether the committed shards had no faults, before any repair."""
        return not self.faults


def verify(path: str, config: VerifyConfig | None = None, listen: Listener = silent) -> VerifyReport:
    """Check an output of `encode`, `merge` or `fetch`, or the checkpoints of a training run.

    Raises InputError or DatasetError if it is not such an output or its embedpipe.json is damaged; then its shards
    cannot be checked, and nothing is dropped. Raises StorageFailed if a remote file system fails, and with `repair`
    OutputBusy and OutputUnwritable.
    """
    config = config or VerifyConfig()
    what = what_is(path)
    if what.kind in (RUN, DECODER):
        return _check_run(path, what, config)
    run = _require_run(path, what)
    with exclusive(path) if config.repair else contextlib.nullcontext():
        report = _check(path, run, config, listen)
        return _repair(path, run, report) if config.repair and report.faults else report


def _check_run(path: str, what: FolderKind, config: VerifyConfig) -> VerifyReport:
    """Of a run, or all stages of a decoder. Raises OptionError for repair: training passes over bad checkpoints."""
    if config.repair:
        raise OptionError(
            f"{path}: is {what.said}; `repair` is for data sets",
            "Run its command again: it goes on from the newest whole checkpoint",
        )
    stages = [name for name in files.names(path) if name.startswith("stage-")] if what.kind == DECODER else [""]
    folders = [files.join(path, stage) if stage else path for stage in stages]
    faults = [
        Fault(None, "", f"{stage}/{fault}".lstrip("/"))
        for stage, folder in zip(stages, folders, strict=True)
        for fault in run_faults(folder, what_is(folder), config.deep)
    ]
    count = sum(len(checkpoint_steps(folder)) for folder in folders)
    size = sum(sum(files.sizes(folder).values()) for folder in folders)
    return VerifyReport(path, RUN_FORMAT, config.deep, count, count, 0, 0, 0, size, tuple(faults), ())


def _require_run(path: str, what: FolderKind) -> RunCard:
    if what.kind == NOTHING:
        raise InputError(f"{path}: no such folder", "Check the path")
    if what.kind in (SELECTION, EXPORT):
        raise InputError(f"{path}: is {what.said}; it has no checksums to verify", "`embedpipe info` describes it")
    run = manifest.read_run(path)
    if run is None:
        raise DatasetError(f"{path}: no embedpipe.json in it", "Give a folder written by `embedpipe encode` or `fetch`")
    if run.format not in KINDS:
        raise DatasetError(f"{path}: embedpipe.json says that it holds {run.format!r}", "Upgrade embedpipe")
    if run.format == EMBEDDINGS:
        open_format(str(run.options.get("format", "npy")))
        if run.encoder is None:
            raise DatasetError(f"{path}: embedpipe.json names no encoder", "Make the data set again in another folder")
    return run


def _check(path: str, run: RunCard, config: VerifyConfig, listen: Listener) -> VerifyReport:
    numbers = manifest.committed_numbers(path)
    there = stored_files(path, run)
    tasks = [Task(number, _name(run, number), _take(there, run, number)) for number in numbers]
    again = input_again(run) if config.deep else None
    listen(Progress(planned=len(tasks)))
    with open_places(config.executor, ResourceRequest(workers=config.workers, threads=1), config.cluster) as (
        executor,
        _,
    ):
        outcome = executor.run(VerifyWork(path, run, config.deep, again), tasks, listen)
    lost = manifest.lost_numbers(run, numbers)
    notes = outcome.report.notes
    leftovers = (*there, *(note.text for note in notes if note.kind == LEFTOVER))
    return VerifyReport(
        path=path,
        format=run.format,
        deep=config.deep,
        planned=len(run.plan),
        committed=len(numbers),
        missing=len(set(range(len(run.plan))).difference(numbers, lost)),
        rows=outcome.report.rows,
        rejected=outcome.report.rejected,
        bytes=outcome.report.bytes,
        faults=(*_run_faults(path, run, lost, config.deep), *_shard_faults(run, outcome)),
        leftovers=tuple(sorted(leftovers)),
        dated=run.dated,
    )


def _name(run: RunCard, number: int) -> str:
    return run.plan[number].name if number < len(run.plan) else ""


def _take(there: dict[str, int], run: RunCard, number: int) -> Mapping[str, int]:
    """The existing files of the shard, except for its manifest; removes them all from `there`."""
    mine = {path: there.pop(path) for path in shard_paths(run, number) if path in there}
    return {path: size for path, size in mine.items() if not path.startswith("manifest/")}


def _shard_faults(run: RunCard, outcome: Outcome) -> Iterator[Fault]:
    for note in sorted(outcome.report.notes, key=lambda note: note.number):
        if note.kind in (FAULT, UNREAD):
            yield Fault(note.number, _name(run, note.number), note.text, note.kind == FAULT)
    for aside in outcome.failed_tasks:
        yield Fault(aside.task.number, aside.task.name, f"could not be checked: {aside.reason}", proven=False)


def _run_faults(path: str, run: RunCard, lost: Iterable[int], deep: bool) -> Iterator[Fault]:
    """Faults in the output as a whole, and shards whose manifest is missing."""
    names = [shard.name for shard in run.plan]
    if len(set(names)) < len(names):
        yield Fault(None, "", "the plan in embedpipe.json names an input shard twice")
    for what in sum_fault(run.listing) if run.listing is not None else ():
        yield Fault(None, "", f"embedpipe.json: {what}")
    for number in lost:
        yield Fault(
            number, _name(run, number), f"manifest/{manifest.shard_name(number, run.shard_digits)}.json: missing"
        )
    if deep and run.format == IMAGE_SHARDS:
        yield from _retry_faults(path, run)
    if deep and run.format == EMBEDDINGS:
        yield from _index_faults(path)


def _retry_faults(path: str, run: RunCard) -> Iterator[Fault]:
    """Check the lists of failed rows for rounds of retries: part of the input, stored in the output."""
    for entry in run.options.get("inputs", ()):
        if not isinstance(entry, dict) or not isinstance(entry.get("retry"), int) or not entry["retry"]:
            continue
        kind, _, checksum = str(entry.get("identity", "")).partition(":")
        if kind == "sha256":
            name = f"retry/{entry['retry']:05d}.parquet"
            yield from _checksum_fault(path, name, checksum, "it says which urls were tried again")


def _index_faults(path: str) -> Iterator[Fault]:
    """Check the indexes beside the shards: each card `index/X.json` with a checksum, and its index file."""
    there = files.sizes(files.join(path, "index"))
    for name in sorted(name for name in there if name.endswith(".json")):
        try:
            card = json.loads(files.read_bytes(files.join(path, "index", name)))
        except ValueError as problem:
            yield Fault(None, "", f"index/{name}: damaged: not JSON ({problem}). `embedpipe index` makes it again")
            continue
        if isinstance(card, dict) and isinstance(card.get("sha256"), str):
            file = str(card.get("file", f"{name.removesuffix('.json')}.faiss"))
            yield from _checksum_fault(path, f"index/{file}", card["sha256"], "`embedpipe index` makes it again")


def _checksum_fault(path: str, name: str, checksum: str, remark: str) -> Iterator[Fault]:
    try:
        if files.sha256(files.join(path, name)) != checksum:
            yield Fault(None, "", f"{name}: the checksum does not match: its bytes were changed; {remark}")
    except InputError:
        yield Fault(None, "", f"{name}: missing; {remark}")
    except OSError as problem:
        yield Fault(None, "", f"{name}: cannot be read: {problem}", proven=False)


def _repair(path: str, run: RunCard, report: VerifyReport) -> VerifyReport:
    """Drop the shards proven to be damaged. They become pending first, so that none is reported as lost."""
    numbers = sorted({fault.number for fault in report.faults if fault.number is not None and fault.proven})
    planned = {number for number in numbers if number < len(run.plan)}
    noted = manifest.with_pending(path, run)
    pending = sorted(planned.union(noted.pending or ()))
    manifest.write_run(path, dataclasses.replace(run, pending=tuple(pending)))
    for number in numbers:
        manifest.retract(path, number, run.shard_digits)
    return dataclasses.replace(report, dropped=tuple(numbers))
