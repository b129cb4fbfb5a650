"""`dedup`: which rows of an embedding data set to keep, which repeat them, and what each threshold would keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import files
from ..errors import InputError, did_you_mean
from ..load import EmbeddingDataset
from ..lock import exclusive
from ..progress import Listener, silent
from . import selection
from .assign import cluster_count
from .boundary import pairs_around
from .duplicates import KEEP, Nearest, Search, nearest_predecessors
from .gather import chunks, gather
from .page import page

DEFAULT_THRESHOLD = 0.95
SWEEP = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True, slots=True)
class DedupConfig:
    """threshold: a row goes when one before it has at least this cosine. keep: a name in KEEP, who comes first.

    modality: image or text. seed: of the clustering. pairs: how many pairs around the threshold pairs.html shows.
    images: where the image shards are now, None for where they were encoded from. materialise: also write the kept rows
    as an embedding data set. threads: None for one on each core; the result does not depend on them.
    """

    threshold: float = DEFAULT_THRESHOLD
    keep: str = "first"
    modality: str = "image"
    seed: int = 0
    pairs: int = 60
    images: str | None = None
    materialise: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise InputError(f"--keep {self.keep}: no such rule", did_you_mean(self.keep, KEEP))
        if not 0 < self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class DedupReport:
    """What `dedup` found. same_content: of the dropped, those whose image is a kept row's to the byte.

    sweep: how many rows each threshold would keep. clusters: 1 means that all pairs were compared. twice: rows near the
    border of two clusters, compared in both.
    """

    rows: int
    kept: int
    dropped: int
    same_content: int
    clusters: int
    twice: int
    threshold: float
    sweep: dict[str, int]


@dataclass(frozen=True, slots=True)
class DedupPlan:
    """What `dedup` would do. scratch_bytes: of the file that rows are sorted in, at least."""

    rows: int
    clusters: int
    scratch_bytes: int


def plan_dedup(path: str, config: DedupConfig | None = None) -> DedupPlan:
    """Look at the data set without comparing anything. Raises as `dedup` does where there is nothing to compare."""
    dataset = _opened(path, config or DedupConfig())
    row_bytes = dataset.card.dim * np.dtype(dataset.card.dtype).itemsize
    return DedupPlan(len(dataset), cluster_count(len(dataset)), len(dataset) * row_bytes)


def dedup(path: str, out: str, config: DedupConfig | None = None, listen: Listener = silent) -> DedupReport:
    """Write `out`/kept.parquet, dropped.parquet, pairs.html and report.json for the data set `path`, left as it is.

    A row is dropped when a row before it, in the order in which they are to be kept, is at least as near as the
    threshold, or has the same image file. The same call again goes on where it was killed, and with another threshold
    it takes what was found before. Raises InputError, DatasetError (no such data set or side, or a row that is not
    finite), RunMismatch (`out` holds another data set), OutputBusy, OutputUnwritable, DiskFull.
    """
    config = config or DedupConfig()
    dataset = _opened(path, config)
    if not files.is_local(out):
        raise InputError(f"{out}: dedup needs a local folder to sort in", "Give one, and copy the result")
    with exclusive(out):
        selection.begin(dataset, out)
        try:
            search = Search(config.modality, config.keep, config.seed, config.threads)
            found = nearest_predecessors(dataset, search, files.local_path(out), listen)
        except OSError as problem:
            raise files.unwritable(out, problem) from problem
        return _write(dataset, out, config, found, listen)


def _opened(path: str, config: DedupConfig) -> EmbeddingDataset:
    dataset = EmbeddingDataset(path)
    dataset.require_rows()
    dataset.require(config.modality)
    return dataset


def _write(dataset: EmbeddingDataset, out: str, config: DedupConfig, found: Nearest, listen: Listener) -> DedupReport:
    kept = found.kept(config.threshold)
    selection.write_rows(dataset, np.flatnonzero(kept), out, "dedup", config.materialise, config.threads, listen)
    same_content = _write_dropped(dataset, out, np.flatnonzero(~kept), found)
    around = pairs_around(dataset, found, config.threshold, config.pairs, config.images)
    files.write_bytes(files.join(out, "pairs.html"), page(f"Duplicates in {dataset.path}", [around]))
    report = DedupReport(
        rows=len(dataset),
        kept=int(kept.sum()),
        dropped=int((~kept).sum()),
        same_content=same_content,
        clusters=found.clusters,
        twice=found.twice,
        threshold=config.threshold,
        sweep={f"{value:g}": int(found.kept(value).sum()) for value in SWEEP},
    )
    told = {"data": files.absolute(dataset.path), "config": dataclasses.asdict(config)}
    selection.end(out, {**told, **dataclasses.asdict(report)})
    return report


_DROPPED = pa.schema(
    [
        ("row", pa.int64()),
        ("src_shard", pa.string()),
        ("key", pa.string()),
        ("cosine", pa.float32()),
        ("same_content", pa.bool_()),
        ("of_row", pa.int64()),
        ("of_src_shard", pa.string()),
        ("of_key", pa.string()),
    ]
)


def _write_dropped(dataset: EmbeddingDataset, out: str, rows: np.ndarray, found: Nearest) -> int:
    """Write dropped.parquet, piece by piece; returns how many rows have `same_content`."""
    same = 0
    with (
        files.writing(files.join(out, "dropped.parquet")) as stream,
        pq.ParquetWriter(stream, _DROPPED) as writer,
    ):
        for table in _dropped(dataset, rows, found):
            writer.write_table(table.cast(_DROPPED))
            same += pc.sum(table["same_content"]).as_py() or 0
    return same


def _dropped(dataset: EmbeddingDataset, rows: np.ndarray, found: Nearest) -> Iterator[pa.Table]:
    for some in chunks(rows):
        of = found.row[some]
        gone, stays = (gather(dataset, which, ("src_shard", "key", "sha256")) for which in (some, of))
        yield pa.table(
            {
                "row": some,
                "src_shard": gone["src_shard"],
                "key": gone["key"],
                "cosine": pa.array(found.cosine[some], from_pandas=True),  # null where only the file was compared
                "same_content": pc.fill_null(pc.equal(gone["sha256"], stays["sha256"]), False),
                "of_row": of,
                "of_src_shard": stays["src_shard"],
                "of_key": stays["key"],
            }
        )
