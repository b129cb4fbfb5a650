"""The exporter interface: rows of an embedding data set, part by part, as files for another program."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..load import EmbeddingDataset
from ..manifest import FileRecord, ShardManifest
from ..ragged import RaggedRows
from ..types import SourceShard


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Everything `export` can be told.

    to: a name in EXPORTS. dtype: float16 or float32; None leaves it to the layout, which mostly takes what is stored.
    keys: a file that names the rows to take (see `embedpipe.subset`); None takes all. text_tokens: take the token
    states along (hf, parquet). splits: `valid=0.05,test=0.05` (hf). index_width: how many digits at the end of a key
    are the sample's place in its tar (aligned). model_name: what the model is called in file columns (datacomp).
    """

    to: str
    dtype: str | None = None
    keys: str | None = None
    text_tokens: bool = False
    splits: str | None = None
    index_width: int | None = None
    model_name: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """The rows of one shard of the data set that become one numbered set of files.

    number: among the parts, without gaps. shard: its place in `dataset.shards`. places: int64, ascending, which of its
    rows; None for all. rows: how many. source: the shard's name, and what its contents and the chosen rows hash to.
    """

    number: int
    shard: int
    places: np.ndarray | None
    rows: int
    source: SourceShard


@dataclass(frozen=True, slots=True)
class ExportPart:
    """A part, read. Row i of every field is the same sample; all numbers are finite.

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
    """Writes one layout. Made for one data set and plan; what cannot be exported this way is refused when it is made.

    options: what was settled that shapes the files; an output is gone on with only under the same.
    folders: below the output, where its files lie ("" is the output itself).
    """

    options: dict[str, Any]
    folders: tuple[str, ...]

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """Write the files of a part, each whole, the same bytes each time (Lance names its files at random)."""
        ...

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """Write what concerns all parts, when all of them are there. Done again, it changes nothing."""
        ...

    def opened_by(self, out: str) -> str:
        """A line of Python that opens the output."""
        ...


class ExporterMaker(Protocol):
    """Makes the exporter of a data set."""

    def __call__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> Exporter:
        """Raises an EmbedpipeError where the data set cannot be exported this way."""
        ...


def avoid_name_clash(metadata: pa.Table, taken: Collection[str]) -> pa.Table:
    """`metadata` with an underscore behind each name that is `taken`: no column is lost to a layout's own."""
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
