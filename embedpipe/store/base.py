"""The storage format interface: write a shard's arrays and tables to files, and read them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..manifest import FileRecord, ShardManifest
from ..ragged import RaggedRows
from ..types import EmbeddingShard
from .rows import Rows


@dataclass(frozen=True, slots=True)
class Contents:
    """What each sample has beside its metadata. modalities: of image and text, those that were encoded."""

    modalities: tuple[str, ...]
    text_tokens: bool

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Contents:
        """As the options of a run say."""
        sides = (("images", "image"), ("texts", "text"))
        return cls(tuple(name for option, name in sides if options.get(option, True)), bool(options.get("text_tokens")))


class ShardPaths(Protocol):
    """Says which files a shard with rows has, its rejects' excepted, by their paths inside the output."""

    def __call__(self, number: int, digits: int, contents: Contents) -> set[str]: ...


class ShardWriter(Protocol):
    """Writes the files of one shard, each whole; the manifest is the caller's to write, last."""

    def __call__(
        self, root: str, shard: EmbeddingShard, source: str, columns: Mapping[str, str], digits: int
    ) -> tuple[FileRecord, ...]:
        """Write `shard`, made from the input shard named `source`; returns what was written, in a fixed order."""
        ...


class ShardReader(Protocol):
    """Reads one committed shard. Arrays are memory-mapped where the file system allows it."""

    def embeddings(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> np.ndarray | None:
        """[n, dim] in the stored dtype, or None where the data set has no such modality."""
        ...

    def open_rows(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> Rows | None:
        """The same rows, to be read piece by piece."""
        ...

    def text_tokens(self, root: str, manifest: ShardManifest, digits: int) -> RaggedRows | None:
        """The states of each caption's tokens, or None where they were not stored."""
        ...

    def metadata(
        self, root: str, manifest: ShardManifest, digits: int, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """The metadata rows (of `columns`, or all)."""
        ...
