"""An embedding data set, opened by its manifests: row i of every column is the same sample."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .. import manifest
from ..card import EncoderCard
from ..errors import DatasetError, did_you_mean
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..store import ShardReader, open_format


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Where the rows of a shard lie in the data set: [start, stop)."""

    manifest: ShardManifest
    start: int
    stop: int


class EmbeddingColumn:
    """One modality's embeddings, read as they are asked for.

    `len(column)`, `column.dim`, `column[i]` → [dim], `column[a:b]` and `column[[3, 1, 2]]` → [n, dim], in the stored
    dtype. `column.read()` → all of it as float32.
    """

    def __init__(self, dataset: EmbeddingDataset, modality: str) -> None:
        self._dataset = dataset
        self._modality = modality

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self._dataset.card.dim

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            return self._rows(np.arange(*index.indices(len(self))))
        if isinstance(index, int | np.integer):
            row = int(index) + len(self) if index < 0 else int(index)
            if not 0 <= row < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            only: np.ndarray = self._rows(np.array([row]))[0]
            return only
        return self._rows(_as_rows(np.asarray(index), len(self)))

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(self)}")
        out = np.empty((len(rows), self.dim), self._dataset.card.dtype)
        shards = self._dataset.shards
        owner = np.searchsorted([shard.stop for shard in shards], rows, side="right")
        for number in np.unique(owner):
            mine = owner == number
            out[mine] = self._dataset.array(int(number), self._modality)[rows[mine] - shards[number].start]
        return out

    def read(self) -> np.ndarray:
        """All rows as float32 [n, dim]: for data that fits in memory."""
        out = np.empty((len(self), self.dim), np.float32)
        for number, shard in enumerate(self._dataset.shards):
            out[shard.start : shard.stop] = self._dataset.array(number, self._modality)
        return out


def _as_rows(index: np.ndarray, total: int) -> np.ndarray:
    """Row numbers from what numpy would take as an index of one axis: numbers (negative: from the end) or a mask."""
    if index.dtype == bool and index.shape == (total,):
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
        raise IndexError(f"rows are chosen by a number, a slice, a list of numbers or a mask of {total} rows")
    rows = index.astype(np.int64)
    return np.where(rows < 0, rows + total, rows)


class EmbeddingDataset:
    """A folder (or fsspec URL) written by `embedpipe encode`, opened by its manifests.

    `len(dataset)` rows; `.card`; `.image` and `.text` are columns (None where the data set has no such side);
    `.column("caption")` reads a metadata column; `.keys()`. A row is identified by (src_shard, key).
    Raises InputError, DatasetError when it is not there, damaged, or holds rows of two encoders.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.run: RunCard = manifest.require_run(path, EMBEDDINGS)
        if self.run.encoder is None:
            raise DatasetError(f"{path}: embedpipe.json names no encoder", "Run `embedpipe encode` again")
        self.card: EncoderCard = self.run.encoder
        self._reader: ShardReader = open_format(str(self.run.options.get("format", "npy"))).reader
        self.manifests = tuple(manifest.read_manifests(path, self.run.shard_digits))
        self.shards = tuple(self._place(self.manifests))
        self._arrays: dict[tuple[int, str], np.ndarray] = {}
        self.image = self._column("images", "image")
        self.text = self._column("texts", "text")

    def _place(self, manifests: Sequence[ShardManifest]) -> Iterator[ShardRows]:
        start = 0
        for entry in manifests:
            if entry.fingerprint != self.card.fingerprint():
                raise DatasetError(
                    f"{self.path}: shard {entry.number} was made by another encoder", "Run `embedpipe verify`"
                )
            if entry.rows_out:
                yield ShardRows(entry, start, start + entry.rows_out)
                start += entry.rows_out

    def _column(self, option: str, modality: str) -> EmbeddingColumn | None:
        return EmbeddingColumn(self, modality) if self.run.options.get(option, True) else None

    def __len__(self) -> int:
        return self.shards[-1].stop if self.shards else 0

    def require_rows(self) -> None:
        """Raise DatasetError when there is not a single row."""
        if not len(self):
            raise DatasetError(f"{self.path}: no rows in it", "Run `embedpipe encode` first, and look at its rejects")

    def require(self, modality: str) -> EmbeddingColumn:
        """The `image` or `text` column. Raises DatasetError when the data set was encoded without it."""
        column = {"image": self.image, "text": self.text}[modality]
        if column is None:
            raise DatasetError(f"{self.path}: has no {modality} embeddings", f"Encode it again without --no-{modality}")
        return column

    def array(self, shard: int, modality: str) -> np.ndarray:
        """The embeddings of the shard at that place in `shards`, memory-mapped where possible: [n, dim]."""
        found = self._arrays.get((shard, modality))
        if found is None:
            entry = self.shards[shard].manifest
            opened = self._reader.embeddings(self.path, entry, modality, self.run.shard_digits)
            if opened is None:
                raise DatasetError(f"{self.path}: shard {entry.number} has no {modality} embeddings", "Run `verify`")
            found = self._arrays[shard, modality] = opened
        return found

    def column(self, name: str) -> pa.ChunkedArray:
        """One metadata column, all rows. Raises DatasetError naming the near columns when there is none such."""
        if not self.shards:
            return pa.chunked_array([], pa.string())
        return pa.chunked_array([self.metadata(i, (name,)).column(0).combine_chunks() for i in range(len(self.shards))])

    def metadata(self, shard: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        """Metadata rows of the shard at that place in `shards`."""
        entry = self.shards[shard].manifest
        for name in columns or ():
            if name not in self.column_names():
                raise DatasetError(f"{self.path}: no metadata column {name!r}", did_you_mean(name, self.column_names()))
        return self._reader.metadata(self.path, entry, self.run.shard_digits, columns)

    def column_names(self) -> tuple[str, ...]:
        """Names of the metadata columns."""
        from ..columns import schema

        return tuple(schema(self.run.columns).names)

    def rows(self, rows: Sequence[int], columns: tuple[str, ...] | None = None) -> list[dict[str, object]]:
        """Metadata of some rows, as dicts, in the order asked for."""
        tables: dict[int, pa.Table] = {}
        out = []
        for row in rows:
            shard = self.shard_of(row)
            if shard not in tables:
                tables[shard] = self.metadata(shard, columns)
            out.append(tables[shard].slice(row - self.shards[shard].start, 1).to_pylist()[0])
        return out

    def shard_of(self, row: int) -> int:
        """The place in `shards` of the shard that holds `row`."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return bisect.bisect_right([shard.stop for shard in self.shards], row)

    def keys(self) -> list[str]:
        """All keys, in row order. Unique within a source shard, not always across."""
        keys: list[str] = self.column("key").to_pylist()
        return keys
