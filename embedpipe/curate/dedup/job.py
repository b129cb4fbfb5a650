"""The dedup job: choose the rows to keep, report the duplicates, and sweep other thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ... import files
from ...errors import OptionError, did_you_mean
from ...execute import Cluster
from ...load import EmbeddingDataset
from ...load.images.source import Images
from ...load.metadata import gather_metadata, row_chunks
from ...lock import exclusive
from ...mirror import working_folder
from ...progress import Listener, Progress, silent
from .. import selection
from ..materialise import refuse_other_output
from ..page import pairs_page
from .clusters import Workers, cluster_count
from .compare_images import picture_differences
from .decision import (
    CANDIDATES,
    CANDIDATES_FROM,
    DEFAULT_DIFFERENCE,
    DEFAULT_THRESHOLD,
    Verdict,
    by_cosine,
    by_pictures,
)
from .image_source import CONFIRM, Choice, choose_image_source
from .search import KEEP, NearEarlier, Search, nearest_predecessors
from .threshold_page import pairs_around

SWEEP = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)
DIFFERENCES = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1)


@dataclass(frozen=True, slots=True)
class DedupConfig:
    """threshold: drop a row if a predecessor has at least this cosine; with images: compare the images of such pairs.

    None: 0.95, or 0.75 with images. confirm: a name in CONFIRM, whether images decide. difference: up to which two
    images are equal. keep: a name in KEEP, the keeping priority. modality: image or text. seed: of the clustering.
    pairs: how many pairs around the threshold pairs.html shows. images: where the image shards are now (one place or
    several), None for where they were. materialise: also write the kept rows as an embedding data set. threads: None
    for one per core. executor: a name in EXECUTORS or auto, to assign rows to clusters with `workers` workers; cluster:
    its address, for ray; `threads` then applies to each worker, and to this process for the other steps. The result
    depends on none of these.
    """

    threshold: float | None = None
    keep: str = "first"
    modality: str = "image"
    seed: int = 0
    pairs: int = 60
    images: Images = None
    materialise: bool = False
    threads: int | None = None
    confirm: str = "auto"
    difference: float = DEFAULT_DIFFERENCE
    executor: str = "auto"
    workers: int = 1
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise OptionError(f"`keep={self.keep!r}`: no such rule", did_you_mean(self.keep, KEEP))
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise OptionError(f"`threshold={self.threshold}`: must be above 0 and at most 1")
        if self.confirm not in CONFIRM:
            raise OptionError(f"`confirm={self.confirm!r}`: no such way", did_you_mean(self.confirm, CONFIRM))
        if not 0 <= self.difference < 1:
            raise OptionError(f"`difference={self.difference}`: must be at least 0 and below 1")


@dataclass(frozen=True, slots=True)
class DedupReport:
    """The result of `dedup`. same_content: dropped rows whose image is byte-identical to a kept row's.

    threshold: the one used. sweep: how many rows other thresholds would keep. clusters: 1 means that all pairs were
    compared. twice: rows near the border of two clusters, compared in both. confirmed_by: pictures or none, and why. If
    images decided: pairs_compared, and of these not_compared, where an image was unavailable; difference_sweep: how
    many rows other image differences would keep.
    """

    rows: int
    kept: int
    dropped: int
    same_content: int
    clusters: int
    twice: int
    threshold: float
    sweep: dict[str, int]
    confirmed_by: str
    why: str
    pairs_compared: int
    not_compared: int
    difference_sweep: dict[str, int]


@dataclass(frozen=True, slots=True)
class DedupPlan:
    """What `dedup` would do. scratch_bytes: the minimum size of the file for sorting rows.

    confirmed_by, why: as in DedupReport; comparing images may read all image shards.
    """

    rows: int
    clusters: int
    scratch_bytes: int
    confirmed_by: str
    why: str


def plan_dedup(path: str, config: DedupConfig | None = None, out: str | None = None) -> DedupPlan:
    """Inspect the data set without comparing anything. Raises as `dedup` does before it compares.

    out: the output location, which is checked as well.
    """
    config = config or DedupConfig()
    dataset = _opened(path, config)
    choice = choose_image_source(dataset, config.confirm, config.modality, config.images)
    if out is not None:
        refuse_other_output(dataset, out)
    row_bytes = dataset.card.dim * np.dtype(dataset.card.dtype).itemsize
    return DedupPlan(len(dataset), cluster_count(len(dataset)), len(dataset) * row_bytes, choice.by, choice.why)


def dedup(path: str, out: str, config: DedupConfig | None = None, listen: Listener = silent) -> DedupReport:
    """Write `out`/kept.parquet, dropped.parquet, pairs.html and report.json for the data set `path`, which is not
    changed.

    A row is dropped if a row of higher keeping priority has the same image file, or a cosine of at least the threshold
    and, if images are compared, an image that looks the same. Repeating the call resumes a killed run; with another
    threshold or difference it reuses the earlier results, which are stored in `out` or, for an object store, in its
    local working folder. Raises InputError (also if image comparison is requested without image shards), DatasetError
    (no such data set or modality, or a row that is not finite), RunMismatch (`out` is of another data set), OutputBusy,
    OutputUnwritable, DiskFull.
    """
    config = config or DedupConfig()
    dataset = _opened(path, config)
    choice = choose_image_source(dataset, config.confirm, config.modality, config.images)
    threshold = config.threshold or (DEFAULT_THRESHOLD if choice.reader is None else CANDIDATES_FROM)
    workers = Workers(config.executor, config.workers, config.threads, config.cluster)
    search = Search(config.modality, config.keep, config.seed, config.threads, workers=workers)
    if choice.reader is not None:
        search = dataclasses.replace(search, most=CANDIDATES, floor=min(threshold, CANDIDATES_FROM))
    place = Path(working_folder(out))
    with exclusive(str(place)):
        selection.begin_selection(dataset, out)
        difference = None
        try:
            first, then = _in_turn(listen)
            found = nearest_predecessors(dataset, search, place, first)
            if choice.reader is not None:
                difference = picture_differences(dataset, found.close, choice.reader, place, config.threads, then)
        except OSError as problem:
            raise files.unwritable(str(place), problem) from problem
        return _write(dataset, out, config, Found(found, difference, threshold, choice), listen)


@dataclass(frozen=True, slots=True)
class Found:
    """The measurements that a run decides by. difference: between the images of `nearest.close`; None: not compared."""

    nearest: NearEarlier
    difference: np.ndarray | None
    threshold: float
    choice: Choice

    def verdict(self, threshold: float, most: float) -> Verdict:
        """Which rows are dropped at that cosine and image difference."""
        if self.difference is None:
            return by_cosine(self.nearest, threshold)
        return by_pictures(self.nearest, self.difference, threshold, most)


def _in_turn(listen: Listener) -> tuple[Listener, Listener]:
    """Listeners for two steps; the second adds its planned tasks to those of the first."""
    done = 0

    def first(step: Progress) -> None:
        nonlocal done
        done += step.tasks
        listen(step)

    def then(step: Progress) -> None:
        listen(step if step.planned is None else dataclasses.replace(step, planned=done + step.planned))

    return first, then


def _opened(path: str, config: DedupConfig) -> EmbeddingDataset:
    dataset = EmbeddingDataset(path)
    dataset.require_rows()
    dataset.require(config.modality)
    dataset.require_normalised(config.modality)
    return dataset


def _write(dataset: EmbeddingDataset, out: str, config: DedupConfig, found: Found, listen: Listener) -> DedupReport:
    verdict = found.verdict(found.threshold, config.difference)
    kept = verdict.kept
    selection.write_selected(dataset, np.flatnonzero(kept), out, "dedup", config.materialise, config.threads, listen)
    same_content = _write_dropped(dataset, out, np.flatnonzero(~kept), verdict)
    most = None if found.difference is None else config.difference
    around = pairs_around(dataset, verdict, found.threshold, most, config.pairs, config.images)
    files.write_bytes(files.join(out, "pairs.html"), pairs_page(f"Duplicates in {dataset.path}", [around]))
    report = DedupReport(
        rows=len(dataset),
        kept=int(kept.sum()),
        dropped=int((~kept).sum()),
        same_content=same_content,
        clusters=found.nearest.clusters,
        twice=found.nearest.twice,
        threshold=found.threshold,
        **_sweeps(found, config.difference),
        confirmed_by=found.choice.by,
        why=found.choice.why,
        pairs_compared=0 if found.difference is None else len(found.difference),
        not_compared=0 if found.difference is None else int(np.isnan(found.difference).sum()),
    )
    told = {"data": files.absolute(dataset.path), "config": dataclasses.asdict(config)}
    selection.end_selection(out, {**told, **dataclasses.asdict(report)})
    return report


def _sweeps(found: Found, most: float) -> dict[str, dict[str, int]]:
    """How many rows other values would keep, varying one of the two at a time."""
    cosines = {f"{value:g}": int(found.verdict(value, most).kept.sum()) for value in SWEEP}
    apart = {} if found.difference is None else {f"{d:g}": found.verdict(found.threshold, d) for d in DIFFERENCES}
    return {"sweep": cosines, "difference_sweep": {d: int(verdict.kept.sum()) for d, verdict in apart.items()}}


_DROPPED = pa.schema(
    [
        ("row", pa.int64()),
        ("src_shard", pa.string()),
        ("key", pa.string()),
        ("cosine", pa.float32()),
        ("difference", pa.float32()),
        ("same_content", pa.bool_()),
        ("of_row", pa.int64()),
        ("of_src_shard", pa.string()),
        ("of_key", pa.string()),
    ]
)


def _write_dropped(dataset: EmbeddingDataset, out: str, rows: np.ndarray, verdict: Verdict) -> int:
    """Write dropped.parquet, piece by piece; returns how many rows have `same_content`."""
    same = 0
    with (
        files.writing(files.join(out, "dropped.parquet")) as stream,
        pq.ParquetWriter(stream, _DROPPED) as writer,
    ):
        for table in _dropped(dataset, rows, verdict):
            writer.write_table(table.cast(_DROPPED))
            same += pc.sum(table["same_content"]).as_py() or 0
    return same


def _dropped(dataset: EmbeddingDataset, rows: np.ndarray, verdict: Verdict) -> Iterator[pa.Table]:
    for some in row_chunks(rows):
        of = verdict.row[some]
        gone, stays = (gather_metadata(dataset, which, ("src_shard", "key", "sha256")) for which in (some, of))
        yield pa.table(
            {
                "row": some,
                "src_shard": gone["src_shard"],
                "key": gone["key"],
                "cosine": pa.array(verdict.cosine[some], from_pandas=True),  # null if only the file was compared
                "difference": pa.array(verdict.difference[some], from_pandas=True),
                "same_content": pc.fill_null(pc.equal(gone["sha256"], stays["sha256"]), False),
                "of_row": of,
                "of_src_shard": stays["src_shard"],
                "of_key": stays["key"],
            }
        )
