"""`dedup`: which rows of an embedding data set to keep, which repeat them, and what each threshold would keep."""

from __future__ import annotations

import dataclasses
import json
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
from .boundary import pairs_around
from .duplicates import KEEP, Nearest, nearest_predecessors
from .gather import chunks, gather
from .page import page

DEFAULT_THRESHOLD = 0.95
ROUNDING = 1e-6  # of a cosine in float32: a row and itself are not always at 1
SWEEP = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True, slots=True)
class DedupConfig:
    """threshold: a row goes when one before it has at least this cosine. keep: a name in KEEP, who comes first.

    modality: image or text. seed: of the clustering. pairs: how many pairs around the threshold pairs.html shows.
    images: where the image shards are now, None for where they were encoded from.
    """

    threshold: float = DEFAULT_THRESHOLD
    keep: str = "first"
    modality: str = "image"
    seed: int = 0
    pairs: int = 60
    images: str | None = None

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise InputError(f"--keep {self.keep}: no such rule", did_you_mean(self.keep, KEEP))
        if not 0 < self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class DedupReport:
    """What `dedup` found. same_content: of the dropped, those whose image is the kept one's to the byte.

    sweep: how many rows each threshold would keep. clusters: 1 means that all pairs were compared.
    """

    rows: int
    kept: int
    dropped: int
    same_content: int
    clusters: int
    threshold: float
    sweep: dict[str, int]


def dedup(path: str, out: str, config: DedupConfig | None = None, listen: Listener = silent) -> DedupReport:
    """Write `out`/kept.parquet, dropped.parquet, pairs.html and report.json for the data set `path`, left as it is.

    A row is dropped when a row before it, in the order in which they are to be kept, is at least as near as the
    threshold. Raises InputError, DatasetError (no such data set, or side), OutputBusy, OutputUnwritable, DiskFull.
    """
    config = config or DedupConfig()
    dataset = EmbeddingDataset(path)
    dataset.require_rows()
    if not files.is_local(out):
        raise InputError(f"{out}: dedup needs a local folder to sort in", "Give one, and copy the result")
    with exclusive(out):
        files.remove(files.join(out, "report.json"))  # written last: without it the other files may be of two runs
        return _dedup(dataset, out, config, listen)


def _dedup(dataset: EmbeddingDataset, out: str, config: DedupConfig, listen: Listener) -> DedupReport:
    folder = files.local_path(out)
    try:
        found = nearest_predecessors(dataset, config.modality, config.keep, config.seed, folder, listen)
    except OSError as problem:
        raise files.unwritable(out, problem) from problem
    dropped = found.cosine >= config.threshold - ROUNDING
    _write(out, "kept", _kept(dataset, np.flatnonzero(~dropped)))
    same_content = _write(out, "dropped", _dropped(dataset, np.flatnonzero(dropped), found))
    shown = pairs_around(dataset, found, config.threshold, config.pairs, config.images)
    files.write_bytes(files.join(out, "pairs.html"), page(f"Duplicates in {dataset.path}", config.threshold, shown))
    report = DedupReport(
        rows=len(dataset),
        kept=int((~dropped).sum()),
        dropped=int(dropped.sum()),
        same_content=same_content,
        clusters=found.clusters,
        threshold=config.threshold,
        sweep={f"{value:g}": int((found.cosine < value - ROUNDING).sum()) for value in SWEEP},
    )
    document = {
        "data": files.absolute(dataset.path),
        "config": dataclasses.asdict(config),
        **dataclasses.asdict(report),
    }
    files.write_bytes(files.join(out, "report.json"), (json.dumps(document, indent=1) + "\n").encode())
    return report


def _kept(dataset: EmbeddingDataset, rows: np.ndarray) -> Iterator[pa.Table]:
    for some in chunks(rows):
        named = gather(dataset, some, ("src_shard", "key"))
        yield pa.table({"row": some, "src_shard": named["src_shard"], "key": named["key"]})


def _dropped(dataset: EmbeddingDataset, rows: np.ndarray, found: Nearest) -> Iterator[pa.Table]:
    for some in chunks(rows):
        of = found.row[some]
        gone, stays = (gather(dataset, which, ("src_shard", "key", "sha256")) for which in (some, of))
        same = pc.fill_null(pc.equal(gone["sha256"], stays["sha256"]), False)
        yield pa.table(
            {
                "row": some,
                "src_shard": gone["src_shard"],
                "key": gone["key"],
                "cosine": found.cosine[some],
                "same_content": same,
                "of_row": of,
                "of_src_shard": stays["src_shard"],
                "of_key": stays["key"],
            }
        )


_COLUMNS = [("row", pa.int64()), ("src_shard", pa.string()), ("key", pa.string())]
_SCHEMAS = {
    "kept": pa.schema(_COLUMNS),
    "dropped": pa.schema(
        [
            *_COLUMNS,
            ("cosine", pa.float32()),
            ("same_content", pa.bool_()),
            ("of_row", pa.int64()),
            ("of_src_shard", pa.string()),
            ("of_key", pa.string()),
        ]
    ),
}


def _write(out: str, name: str, tables: Iterator[pa.Table]) -> int:
    """Write a table piece by piece; returns how many rows have `same_content`."""
    same = 0
    with (
        files.writing(files.join(out, f"{name}.parquet")) as stream,
        pq.ParquetWriter(stream, _SCHEMAS[name]) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(_SCHEMAS[name]))
            same += pc.sum(table["same_content"]).as_py() or 0 if "same_content" in table.column_names else 0
    return same
