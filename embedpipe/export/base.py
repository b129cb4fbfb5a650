"""The exporter interface: rows of an embedding data set, part by part, as files for another program."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..load import EmbeddingDataset
from ..load.split import CONTENT
from ..manifest import FileRecord, ShardManifest
from ..ragged import RaggedRows
from ..types import SourceShard


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The options of `export`.

    to: a name in EXPORTS. dtype: float16 or float32; None uses the layout's default, mostly the stored dtype. keys: a
    file that lists the rows to export (see `embedpipe.subset`); None for all. text_tokens: include the token states
    (hf, parquet). splits: `valid=0.05,test=0.05` (hf). index_width: how many digits at the end of a key are the
    sample's index in its tar (aligned). model_name: the model's name in columns (datacomp). split_by: what
    `splits` hash, see `embedpipe.load.splits`; an export of an earlier version is continued by its own rule.
    """

    to: str
    dtype: str | None = None
    keys: str | None = None
    text_tokens: bool = False
    splits: str | None = None
    index_width: int | None = None
    model_name: str | None = None
    split_by: str = CONTENT


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """The rows of one shard of the data set that become one numbered set of files.

    number: of the part, consecutive. shard: index in `dataset.shards`. places: int64, ascending, the selected rows of
    the shard; None for all. rows: how many. source: the shard's name, and a hash of its contents and the selected rows.
    """

    number: int
    shard: int
    places: np.ndarray | None
    rows: int
    source: SourceShard


@dataclass(frozen=True, slots=True)
class ExportPart:
    """The data of a part. Row i of every field is the same sample; all numbers are finite.

    image, text: [n, dim] in the dtype of the export, or None. metadata: the data set's columns, n rows.
    """

    planned: PlannedPart
    image: np.ndarray | None
    text: np.ndarray | None
    text_tokens: RaggedRows | None
    metadata: pa.Table

    def __len__(self) -> int:
        return self.planned.rows


class Exporter(Protocol):
    """Writes one layout. Constructed for one data set and plan; the constructor refuses data that cannot be exported.

    options: resolved options that determine the files; an output is only resumed with the same ones. folders: those of
    its files, relative to the output ("" is the output itself).
    """

    options: dict[str, Any]
    folders: tuple[str, ...]

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """Write the files of a part, atomically and with reproducible bytes (Lance names its files at random)."""
        ...

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """Write the files shared by all parts, once all of them exist. Idempotent."""
        ...

    def opened_by(self, out: str) -> str:
        """A line of Python that opens the output."""
        ...


class ExporterMaker(Protocol):
    """Constructs the exporter for a data set."""

    def __call__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> Exporter:
        """Raises an EmbedpipeError if the data set cannot be exported to this layout."""
        ...


def avoid_name_clash(metadata: pa.Table, taken: Collection[str]) -> pa.Table:
    """`metadata` with an underscore appended to each name in `taken`, to avoid collisions with the layout's columns."""
    names: list[str] = []
    there = {*taken, *metadata.column_names}
    for name in metadata.column_names:
        free = name
        if name in taken:
            while free in there:
                free += "_"
            there.add(free)
        names.append(free)
    return metadata.rename_columns(names)
