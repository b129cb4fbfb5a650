"""The export job: plan the parts, find missing ones, write them one by one, then write the shared files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import files
from ..containment import refuse_outward_links
from ..load import EmbeddingDataset
from ..lock import exclusive
from ..manifest import EXPORT_RECORD, RunCard, ShardManifest
from ..mirror import Scope, at_work
from ..progress import Listener, Progress, silent
from ..subset import read_subset
from . import journal, open_export
from .base import ExportConfig, Exporter, PlannedPart
from .parts import plan_parts, read_export_part


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The result of an export. rows, parts, files, bytes: in the whole output. already: parts of an earlier run.

    opened_by: a line of Python that opens the output.
    """

    to: str
    rows: int
    parts: int
    already: int
    files: int
    bytes: int
    seconds: float
    opened_by: str


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What `export` would do. options: resolved ones. to_write: missing parts."""

    to: str
    rows: int
    parts: int
    to_write: int
    options: dict[str, Any]


def export(emb: str, out: str, config: ExportConfig, listen: Listener = silent) -> ExportReport:
    """Export the embedding data set `emb` to `out` in another program's layout; a repeated run resumes.

    Rows keep their order: row i of every file of a part is the same sample. Raises InputError (no such layout, option
    or row; keys that the layout cannot represent), DatasetError (truncated, missing, or not finite), RunMismatch (`out`
    contains something else), OutputBusy, OutputUnwritable, DiskFull, MissingExtra. Parts already written stay intact.
    """
    begun = time.perf_counter()
    job = _prepare(emb, out, config)
    written_locally = open_export(config).written_locally
    if written_locally and not files.is_local(out):
        with at_work(out, Scope((*written_locally, EXPORT_RECORD), rest=False)) as place:
            journal.refuse_other_export(out, job.card)
            written, already = _write(place.folder, job, config, listen)
    else:
        written, already = _write(out, job, config, listen)
    return _report(out, job, config, written, already, time.perf_counter() - begun)


def _write(out: str, job: _Job, config: ExportConfig, listen: Listener) -> tuple[list[ShardManifest], int]:
    """Write the missing parts; returns (all parts, how many existed)."""
    journal.refuse_other_export(out, job.card)  # also here, so that nothing is left in a folder given by mistake
    refuse_outward_links(out)
    with exclusive(journal.state(out)):
        journal.refuse_other_export(out, job.card)
        whole = journal.resume(out, job.card, job.exporter.folders)
        todo = [part for part in job.plan if part.number not in whole]
        already = len(whole)
        listen(Progress(planned=len(todo), planned_rows=sum(part.rows for part in todo)))
        for planned in todo:
            part = read_export_part(job.dataset, planned, job.dtype, config.text_tokens)
            whole[planned.number] = journal.commit_export(out, planned, job.exporter.write(out, part))
            listen(Progress(rows=planned.rows, tasks=1))
        written = [whole[part.number] for part in job.plan]
        job.exporter.finish(out, written)
    return written, already


def plan_export(emb: str, out: str, config: ExportConfig) -> ExportPlan:
    """What `export` would do, without writing anything. Raises as `export` does."""
    job = _prepare(emb, out, config)
    journal.refuse_other_export(out, job.card)
    done = len(journal.committed_parts(out))
    return ExportPlan(
        config.to, sum(part.rows for part in job.plan), len(job.plan), len(job.plan) - done, job.card.options
    )


@dataclass(frozen=True, slots=True)
class _Job:
    dataset: EmbeddingDataset
    plan: Sequence[PlannedPart]
    dtype: str
    exporter: Exporter
    card: RunCard


def _prepare(emb: str, out: str, config: ExportConfig) -> _Job:
    kind = open_export(config)
    dataset = EmbeddingDataset(emb)
    plan = plan_parts(dataset, read_subset(dataset, config.keys) if config.keys is not None else None)
    if config.text_tokens:
        dataset.require_text_tokens()
    dtype = config.dtype or kind.dtype or dataset.card.dtype
    exporter = kind.make(dataset, plan, dataclasses.replace(config, split_by=journal.split_rule(out)))
    options = {"to": config.to, "dtype": dtype, "text_tokens": config.text_tokens, **exporter.options}
    return _Job(dataset, plan, dtype, exporter, journal.export_card(dataset, plan, options))


def _report(
    out: str, job: _Job, config: ExportConfig, written: Sequence[ShardManifest], already: int, seconds: float
) -> ExportReport:
    return ExportReport(
        to=config.to,
        rows=sum(part.rows for part in job.plan),
        parts=len(job.plan),
        already=already,
        files=sum(len(entry.files) for entry in written),
        bytes=sum(entry.bytes() for entry in written),
        seconds=seconds,
        opened_by=job.exporter.opened_by(out),
    )
