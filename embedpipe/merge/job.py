"""The merge job: number the shards of all data sets, find missing ones, copy them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .. import files, manifest
from ..accounts import total
from ..clip_model.encoder_card import BEFORE_ACTIVATION
from ..errors import InputError, RunMismatch
from ..execute import FailedTask, Task, open_executor
from ..lock import exclusive
from ..manifest import EMBEDDINGS, RunCard
from ..progress import Listener, Progress, TaskReport, silent
from ..shard_plan import grow_plan
from ..store.cleanup import sweep_dataset_temporaries, sweep_leftovers
from ..taken_down import refuse_interrupted
from ..types import SourceShard
from .inputs import MergeInput, changed_columns, common_card, merged_options, open_inputs, unified_columns
from .worker import MergeWork, Taken

_ANOTHER = "Merge into another folder"


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """The options of `merge`. workers: processes that copy shards.

    trust_old_card: merge data sets of version 0.1 with later ones if all fields that it recorded agree.
    """

    workers: int = 1
    executor: str = "auto"
    trust_old_card: bool = False


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The plan of a merge: the run card of the merged data set, and the shards to copy.

    prefixes: of the shard names of each data set, by its path. columns: what happens to metadata columns that differ.
    unfinished: data sets with planned but uncommitted shards.
    """

    run: RunCard
    tasks: tuple[Task, ...]
    prefixes: dict[str, str]
    columns: dict[str, str]
    unfinished: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The result of a run of `merge`. See `MergePlan`; already: shards from earlier runs; report: what this run added.

    redone: shards that had missing or truncated files. failed_tasks: shards that could not be copied.
    """

    planned: int
    already: int
    rows: int
    rejected: int
    prefixes: dict[str, str]
    columns: dict[str, str]
    unfinished: tuple[str, ...]
    redone: tuple[str, ...]
    report: TaskReport
    failed_tasks: tuple[FailedTask, ...]
    seconds: float


def merge(paths: Sequence[str], out: str, config: MergeConfig | None = None, listen: Listener = silent) -> MergeReport:
    """Merge the embedding data sets `paths` into `out`, shard by shard; a repeated run resumes.

    Raises InputError, DatasetError (a shard is damaged: it is never copied), RunMismatch (they are incompatible, or
    `out` was made from other inputs or options), OutputBusy, OutputUnwritable, DiskFull.
    """
    config = config or MergeConfig()
    begun = time.perf_counter()
    plan_merge(paths, out, config.trust_old_card)  # refuse invalid merges before creating a folder
    with exclusive(out):
        found = plan_merge(paths, out, config.trust_old_card)
        refuse_interrupted(out)
        redone = _retract_damaged(out, found.run.shard_digits)
        committed = set(manifest.committed_numbers(out))
        todo = [task for task in found.tasks if task.number not in committed]
        sweep_dataset_temporaries(out)
        sweep_leftovers(out, found.run.shard_digits, [task.number for task in todo])
        manifest.write_run(out, manifest.with_pending(out, found.run))
        listen(Progress(planned=len(todo), planned_rows=sum(task.payload.entry.rows_out for task in todo)))
        outcome = open_executor(config.executor, config.workers).run(MergeWork(out, found.run), todo, listen)
        sweep_dataset_temporaries(out)
        manifest.settle(out)
        total = manifest.totals(manifest.read_manifests(out, found.run.shard_digits))
    return MergeReport(
        planned=len(found.run.plan),
        already=len(committed),
        rows=total.succeeded,
        rejected=sum(total.failed.values()),
        prefixes=found.prefixes,
        columns=found.columns,
        unfinished=found.unfinished,
        redone=redone,
        report=outcome.report,
        failed_tasks=outcome.failed_tasks,
        seconds=time.perf_counter() - begun,
    )


def plan_merge(paths: Sequence[str], out: str, trust_old_card: bool = False) -> MergePlan:
    """What `merge` would do, without writing anything. Raises as `merge` does."""
    if len(paths) < 2:
        raise InputError("merge needs two data sets or more", "Give them all, then the output folder")
    if files.absolute(out).rstrip("/") in {files.absolute(path).rstrip("/") for path in paths}:
        raise InputError(f"{out}: is one of the data sets to merge", "Name another folder as the last one")
    previous = _previous(out)
    parts = open_inputs(paths, trust_old_card)
    if previous is not None:
        parts = _continued(out, previous, parts)
    shards = [(part, source, entry) for part in parts for source, entry in part.shards()]
    change = grow_plan(previous.plan if previous is not None else (), [source for _, source, _ in shards])
    columns = previous.columns if previous is not None else unified_columns(parts)
    number_of = {shard.name: number for number, shard in enumerate(change.shards)}
    tasks = [
        Task(
            number_of[source.name],
            source.name,
            Taken(part.path, part.run.shard_digits, part.run.columns, entry, source),
        )
        for part, source, entry in shards
    ]
    if previous is not None:
        _require_unchanged(out, previous.shard_digits, tasks)
    return MergePlan(
        run=_run_card(parts, previous, change.shards, columns),
        tasks=tuple(sorted(tasks, key=lambda task: task.number)),
        prefixes={part.path: part.prefix for part in parts},
        columns=changed_columns(parts, columns),
        unfinished=tuple(part.path for part in parts if len(part.manifests) < len(part.run.plan)),
    )


def _previous(out: str) -> RunCard | None:
    run = manifest.read_run(out)
    if run is None:
        if manifest.committed_numbers(out):
            raise RunMismatch(f"{out}: has manifests but no embedpipe.json", _ANOTHER)
        return None
    if run.format != EMBEDDINGS or not run.merged or "selection" in run.options:
        raise RunMismatch(f"{out}: holds something that merge did not make", _ANOTHER)
    return run


def _continued(out: str, previous: RunCard, parts: Sequence[MergeInput]) -> tuple[MergeInput, ...]:
    """The parts in their previous order, then new ones. Raises RunMismatch unless this extends the previous merge."""
    now = {part.path: part for part in parts}
    for before in previous.merged:
        if before.path not in now:
            raise RunMismatch(
                f"{out}: was merged of {before.path}, too, which is not among the data sets given now",
                "Give it as well, or merge into another folder",
            )
        if before.prefix != now[before.path].prefix:
            raise RunMismatch(
                f"{out}: shards of {before.path} are called {before.prefix or 'as they were'} there, "
                f"and with these data sets they would be called {now[before.path].prefix or 'as they are'}",
                _ANOTHER,
            )
    known = [before.path for before in previous.merged]
    assert previous.encoder is not None
    now_card = common_card(parts)
    if now_card.dated and not previous.encoder.dated:
        raise RunMismatch(
            f"{out}: this merge records the activation, and a data set given now was {BEFORE_ACTIVATION}", _ANOTHER
        )
    manifest.refuse_difference(out, previous.encoder.facts(), now_card.facts(), "encoder", _ANOTHER)
    manifest.refuse_difference(out, previous.options, merged_options(parts[0]), "set of options", _ANOTHER)
    return (*(now[path] for path in known), *(part for part in parts if part.path not in known))


def _run_card(
    parts: Sequence[MergeInput], previous: RunCard | None, plan: tuple[SourceShard, ...], columns: dict[str, str]
) -> RunCard:
    records = tuple(part.record() for part in parts)
    listing = total(*(part.run.listing for part in parts)) if all(part.run.listing for part in parts) else None
    if previous is not None:
        return dataclasses.replace(previous, plan=plan, merged=records, listing=listing)
    first = parts[0].run
    return RunCard(
        format=EMBEDDINGS,
        options=merged_options(parts[0]),
        plan=plan,
        columns=columns,
        encoder=common_card(parts),
        shard_digits=max(5, len(str(10 * len(plan)))),
        versions=first.versions,
        token_width=first.token_width,
        merged=records,
        listing=listing,
    )


def _require_unchanged(out: str, digits: int, tasks: Sequence[Task]) -> None:
    """Raise RunMismatch if a data set has a different shard with the name of a copied one."""
    committed = set(manifest.committed_numbers(out))
    for task in tasks:
        if task.number in committed:
            before = manifest.read_manifest(out, task.number, digits)
            now = task.payload.entry
            if (before.source_sha256, before.rows_out) != (now.source_sha256, now.rows_out):
                raise RunMismatch(f"{out}: {task.name} changed in {task.payload.path} since it was merged", _ANOTHER)


def _retract_damaged(out: str, digits: int) -> tuple[str, ...]:
    """Retract shards with missing or resized files; returns their names."""
    bad = [entry for entry in manifest.read_manifests(out, digits) if not manifest.files_are_there(out, entry)]
    for entry in bad:
        manifest.retract(out, entry.number, digits)
    return tuple(entry.source.name for entry in bad)
