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
    """The stored contents besides metadata. modalities: the encoded ones of image and text."""

    modalities: tuple[str, ...]
    text_tokens: bool

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Contents:
        """From the options of a run."""
        sides = (("images", "image"), ("texts", "text"))
        return cls(tuple(name for option, name in sides if options.get(option, True)), bool(options.get("text_tokens")))


class ShardPaths(Protocol):
    """The files of a shard with rows, except for its rejects, as paths inside the output."""

    def __call__(self, number: int, digits: int, contents: Contents) -> set[str]: ...


class ShardWriter(Protocol):
    """Writes the files of one shard, each atomically; the caller writes the manifest last."""

    def __call__(
        self, root: str, shard: EmbeddingShard, source: str, columns: Mapping[str, str], digits: int
    ) -> tuple[FileRecord, ...]:
        """Write `shard`, from the input shard named `source`; returns the records of the files, in a fixed order."""
        ...


class ShardReader(Protocol):
    """Reads one committed shard. Arrays are memory-mapped if the file system allows it."""

    def embeddings(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> np.ndarray | None:
        """[n, dim] in the stored dtype, or None if the data set lacks that modality."""
        ...

    def open_rows(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> Rows | None:
        """The same rows, for reading in pieces."""
        ...

    def text_tokens(self, root: str, manifest: ShardManifest, digits: int) -> RaggedRows | None:
        """The states of each caption's tokens, or None if not stored."""
        ...

    def metadata(
        self, root: str, manifest: ShardManifest, digits: int, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """The metadata rows (of `columns`, or all)."""
        ...
