"""An embedding data set, opened by its manifests: row i of every column is the same sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from ..clip_model.encoder_card import EncoderCard
from ..columns import NORMS, column_names, of_norm_1
from ..errors import DatasetError, InputError
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..plural import plural
from ..ragged import RaggedRows
from ..store.foreign import NOTE
from ..store.foreign.base import Foreign
from ..store.rows import Rows
from ..types import EmbeddingBatch
from .columns import EmbeddingColumn, RaggedColumn
from .keys import KeyRows
from .locate import open_at
from .lru_cache import ByteLRUCache
from .metadata import MetadataColumns
from .norms import Norms, norms_missing, scaled
from .row_index import Index, as_rows
from .row_reader import RowReading
from .sequential import sequential

if TYPE_CHECKING:
    from .torch_datasets import RowDataset, RowStream

# Cache size for arrays that cannot be memory-mapped, such as those in object stores.
_HELD_BYTES = 1 << 30
_ROWS_AT_ONCE = 100_000
LARGEST_TABLE = 8 << 30
_NORMS_FROM_SHARDS, _NORMS_OF_EACH = 8, 64


_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The range of a shard's rows in the data set: [start, stop)."""

    manifest: ShardManifest
    start: int
    stop: int


class EmbeddingDataset:
    """A folder (or fsspec URL) of embedding shards, from `embedpipe encode` or another tool (described by `foreign`).

    `len(dataset)` rows; `.card` is the model card (`.card.known` is False if another tool left no record); `.image` and
    `.text` are columns (None if the data set lacks that modality); `.text_tokens` has the states of each caption's
    tokens (None if not stored); `.metadata["caption"]` is a metadata column; `.image.raw()` are the rows before
    normalisation. All are read lazily. `.find(keys)` returns rows by key: a row is identified by (src_shard, key).
    `.batches(n)` reads everything in order. Raises InputError, DatasetError if it is missing, damaged, or has rows of
    two encoders; StorageFailed.
    """

    def __init__(self, path: str, foreign: Foreign | None = None) -> None:
        self.path = path
        self._foreign = foreign
        opened = open_at(path, foreign)
        self.run: RunCard = opened.run
        self.card: EncoderCard = opened.card
        self._reader = opened.reader
        self.manifests = tuple(opened.manifests)
        self.shards = tuple(_placed(self.manifests))
        self.stops = np.array([shard.stop for shard in self.shards], np.int64)
        self._held = ByteLRUCache(_HELD_BYTES)
        self.image = self._column("images", "image")
        self.text = self._column("texts", "text")
        width = self.run.token_width
        self.text_tokens = RaggedColumn(self, width) if width is not None else None
        self.metadata = MetadataColumns(path, self.column_names(), self.stops, self._table)
        self._keys = KeyRows(path, self.metadata, len(self.shards))

    def _column(self, option: str, modality: str) -> EmbeddingColumn | None:
        return EmbeddingColumn(self, modality) if self.run.options.get(option, True) else None

    def __len__(self) -> int:
        return self.shards[-1].stop if self.shards else 0

    def __reduce__(self) -> tuple[type[EmbeddingDataset], tuple[str, Foreign | None]]:
        return EmbeddingDataset, (self.path, self._foreign)  # a worker opens it anew

    def __repr__(self) -> str:
        sides = " and ".join(side for side in ("image", "text") if getattr(self, side) is not None)
        rows, dim = self.shape
        return (
            f"EmbeddingDataset({self.path!r}): {plural(rows, 'row')} × {dim} ({sides}, {self.card.dtype}) in "
            f"{plural(len(self.shards), 'shard')}\n"
            f"model: {f'{self.card.model} {self.card.pretrained}'.strip()}\ncolumns: {', '.join(self.columns)}"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, dim), of each side."""
        return len(self), self.card.dim

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the metadata columns."""
        return self.column_names()

    def to_arrow(self, columns: Sequence[str] | None = None, rows: Index | None = None) -> pa.Table:
        """Metadata as a table. columns: None for all. rows: a slice or numbers, in their order; None for all.

        Raises InputError where that would take more than `LARGEST_TABLE` bytes, before it is in memory.
        """
        names = None if columns is None else tuple(columns)
        wanted = range(len(self)) if rows is None else as_rows([rows] if isinstance(rows, int) else rows, len(self))
        parts, size = [], 0
        for start in range(0, max(1, len(wanted)), _ROWS_AT_ONCE):
            parts.append(self.metadata.take(np.asarray(wanted[start : start + _ROWS_AT_ONCE]), names))
            size += parts[-1].nbytes
            if size > LARGEST_TABLE:
                raise InputError(
                    f"{self.path}: metadata of {len(wanted):,} rows take more than {LARGEST_TABLE >> 30} GiB",
                    "Name columns=, or fewer rows=",
                )
        return pa.concat_tables(parts, promote_options="permissive")

    def to_pandas(self, columns: Sequence[str] | None = None, rows: Index | None = None) -> Any:
        """Metadata as a data frame of pandas, otherwise as `to_arrow`."""
        return self.to_arrow(columns, rows).to_pandas(split_blocks=True)

    def torch(
        self, rows: Sequence[int] | np.ndarray | None = None, columns: Sequence[str] = (), stream: bool = False
    ) -> RowDataset | RowStream:
        """A data set for torch's DataLoader: see `RowDataset` or, with `stream`, `RowStream`."""
        from .torch_datasets import RowDataset, RowStream

        return RowStream(self, rows, columns) if stream else RowDataset(self, rows, columns)

    def require_rows(self) -> None:
        """Raise DatasetError if there are no rows."""
        if not len(self):
            raise DatasetError(f"{self.path}: no rows in it", "Run `embedpipe encode` first, and look at its rejects")

    def require(self, modality: str) -> EmbeddingColumn:
        """The `image` or `text` column. Raises DatasetError if the data set was encoded without it."""
        column = {"image": self.image, "text": self.text}[modality]
        if column is None:
            raise DatasetError(f"{self.path}: has no {modality} embeddings", f"Encode it again with its {modality}s")
        return column

    def require_text_tokens(self) -> RaggedColumn:
        """The `text_tokens` column. Raises DatasetError if the data set was encoded without it."""
        if self.text_tokens is None:
            raise DatasetError(
                f"{self.path}: has no text tokens", "Encode it again with `embedpipe.encode(text_tokens=True)`"
            )
        return self.text_tokens

    def require_normalised(self, modality: str) -> None:
        """Raise DatasetError if a sample of rows does not have norm 1: other tools' data may have any norms."""
        least, most = self._stored_norms(modality)
        if not of_norm_1(least, most):
            raise DatasetError(
                f"{self.path}: {modality} rows have norms of {least:.3g} to {most:.3g}, not 1",
                f'Write {{"normalise": true}} into its {NOTE}, or open it with Foreign(normalise=True)',
            )

    def _stored_norms(self, modality: str) -> tuple[float, float]:
        """(least, most) norm of stored rows; from a sample for other tools' data, which may have any."""
        if self.card.normalised or not len(self):
            return 1.0, 1.0
        column, norms = self.require(modality), []
        chosen = self.shards[:: max(1, len(self.shards) // _NORMS_FROM_SHARDS)][:_NORMS_FROM_SHARDS]
        for shard in chosen:
            rows = np.empty((min(_NORMS_OF_EACH, shard.stop - shard.start), column.dim), np.float32)
            with RowReading(self) as reading:
                reading.in_order(shard.start, modality, rows)
            norms.append(np.linalg.norm(rows, axis=1))
        found = np.concatenate(norms)
        return float(found.min()), float(found.max())

    def norms(self, modality: str) -> Norms | None:
        """The norms of that modality's rows before normalisation; None if the stored rows are not normalised.

        Raises DatasetError if they are, but the norms were not stored.
        """
        self.require(modality)
        least, most = self._stored_norms(modality)
        if not of_norm_1(least, most):
            return None
        name = NORMS[modality]
        others = self.run.format != EMBEDDINGS or "read_as" in self.run.options
        if self.run.columns.get(name) not in ("float", "double" if others else "float"):
            raise norms_missing(self.path, modality, name)
        return Norms(self.path, name, self.metadata[name].__getitem__)

    def array(self, shard: int, modality: str) -> np.ndarray:
        """The embeddings of the shard at that index in `shards`, memory-mapped if possible: [n, dim]."""

        def read() -> np.ndarray:
            entry = self.shards[shard].manifest
            found = self._reader.embeddings(self.path, entry, modality, self.run.shard_digits)
            return self._there(found, entry, f"{modality} embeddings")

        found: np.ndarray = self._held.get((shard, modality), read)
        return found

    def open_rows(self, shard: int, modality: str) -> Rows:
        """The same embeddings, for reading in pieces; close them after use."""
        entry = self.shards[shard].manifest
        found = self._reader.open_rows(self.path, entry, modality, self.run.shard_digits)
        rows = self._there(found, entry, f"{modality} embeddings")
        if rows.dtype != self.card.dtype:
            rows.close()
            raise DatasetError(
                f"{rows.location}: {rows.dtype}, but the data set is {self.card.dtype}", "Run `embedpipe verify`"
            )
        return rows

    def token_states(self, shard: int) -> RaggedRows:
        """The token states of the shard at that index in `shards`, memory-mapped if possible."""

        def read() -> RaggedRows:
            entry = self.shards[shard].manifest
            return self._there(self._reader.text_tokens(self.path, entry, self.run.shard_digits), entry, "text tokens")

        found: RaggedRows = self._held.get((shard, "text_tokens"), read)
        return found

    def _there(self, found: _Found | None, entry: ShardManifest, what: str) -> _Found:
        if found is None:
            raise DatasetError(f"{self.path}: shard {entry.number} has no {what}", "Run `embedpipe verify`")
        return found

    def batches(
        self,
        batch_size: int,
        dtype: str | None = None,
        sides: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
        reuse: bool = False,
        finite: bool = False,
        raw: bool = False,
    ) -> Iterator[EmbeddingBatch]:
        """Rows [start, stop) in order, `batch_size` at a time (the last may be smaller), in the stored dtype.

        dtype: float16 or float32 instead. sides: `image`, `text`; None for all available. reuse: reuse the memory, so
        that a batch is valid until the next one is requested. finite: raise DatasetError, naming file and row, for one
        with NaN or infinity. raw: float32 rows before normalisation, as the projection gave them; raises DatasetError
        if the data set has no norms.
        """
        wanted = (
            tuple(sides) if sides is not None else tuple(n for n in ("image", "text") if getattr(self, n) is not None)
        )
        for side in wanted:
            self.require(side)
        rows = range(*slice(start, stop).indices(len(self)))
        if not raw:
            return sequential(self, self.card, rows, batch_size, dtype or self.card.dtype, wanted, reuse, finite)
        if dtype not in (None, "float32"):
            raise InputError(f"no raw batches of {dtype!r}", "Raw rows are float32")
        norms = {side: self.norms(side) for side in wanted}
        return scaled(
            sequential(self, self.card, rows, batch_size, "float32", wanted, reuse, finite), rows.start, norms
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """One metadata column, all rows. Raises DatasetError with similar names for an unknown column."""
        return self.metadata.column(name)

    def _table(self, shard: int, columns: tuple[str, ...]) -> pa.Table:
        return self._reader.metadata(self.path, self.shards[shard].manifest, self.run.shard_digits, columns)

    def column_names(self) -> tuple[str, ...]:
        """Names of the metadata columns."""
        return column_names(self.run.columns)

    def rows(self, rows: Sequence[int], columns: tuple[str, ...] | None = None) -> list[dict[str, object]]:
        """Metadata of some rows, as dicts, in the given order."""
        found: list[dict[str, object]] = self.metadata.take(rows, columns).to_pylist()
        return found

    def find(self, keys: Sequence[str], src_shard: str | None = None) -> np.ndarray:
        """int64 [n]: the rows with these keys, to index columns. Raises DatasetError for a missing or repeated key."""
        return self._keys.find(keys, src_shard)

    def shard_of(self, row: int) -> int:
        """The index in `shards` of the shard with `row`."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return int(np.searchsorted(self.stops, row, side="right"))

    def keys(self) -> list[str]:
        """All keys, in row order. Unique within a source shard, not always across."""
        keys: list[str] = self.column("key").to_pylist()
        return keys


def _placed(manifests: Sequence[ShardManifest]) -> Iterator[ShardRows]:
    start = 0
    for entry in manifests:
        if entry.rows_out:
            yield ShardRows(entry, start, start + entry.rows_out)
            start += entry.rows_out
