"""An embedding data set, opened by its manifests: row i of every column is the same sample."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from .. import manifest
from ..card import EncoderCard
from ..errors import DatasetError, did_you_mean
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..ragged import RaggedRows
from ..store import ShardReader, open_format
from .columns import EmbeddingColumn, RaggedColumn
from .held import Held

# Of arrays that cannot be memory-mapped, as on object stores: shards that are asked for again and again.
_HELD_BYTES = 1 << 30


_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Where the rows of a shard lie in the data set: [start, stop)."""

    manifest: ShardManifest
    start: int
    stop: int


class EmbeddingDataset:
    """A folder (or fsspec URL) written by `embedpipe encode`, opened by its manifests.

    `len(dataset)` rows; `.card`; `.image` and `.text` are columns (None where the data set has no such side);
    `.text_tokens` holds the states of each caption's tokens (None where they were not stored); `.column("caption")`
    reads a metadata column; `.keys()`. A row is identified by (src_shard, key).
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
        self.stops = np.array([shard.stop for shard in self.shards], np.int64)
        self._held = Held(_HELD_BYTES)
        self.image = self._column("images", "image")
        self.text = self._column("texts", "text")
        width = self.run.token_width
        self.text_tokens = RaggedColumn(self, width) if width is not None else None

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

    def require_text_tokens(self) -> RaggedColumn:
        """The `text_tokens` column. Raises DatasetError when the data set was encoded without it."""
        if self.text_tokens is None:
            raise DatasetError(f"{self.path}: has no text tokens", "Encode it again with --text-tokens")
        return self.text_tokens

    def array(self, shard: int, modality: str) -> np.ndarray:
        """The embeddings of the shard at that place in `shards`, memory-mapped where possible: [n, dim]."""

        def read() -> np.ndarray:
            entry = self.shards[shard].manifest
            found = self._reader.embeddings(self.path, entry, modality, self.run.shard_digits)
            return self._there(found, entry, f"{modality} embeddings")

        return self._held.get((shard, modality), read)

    def token_states(self, shard: int) -> RaggedRows:
        """The token states of the shard at that place in `shards`, memory-mapped where possible."""

        def read() -> RaggedRows:
            entry = self.shards[shard].manifest
            return self._there(self._reader.text_tokens(self.path, entry, self.run.shard_digits), entry, "text tokens")

        return self._held.get((shard, "text_tokens"), read)

    def _there(self, found: _Found | None, entry: ShardManifest, what: str) -> _Found:
        if found is None:
            raise DatasetError(f"{self.path}: shard {entry.number} has no {what}", "Run `embedpipe verify`")
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
