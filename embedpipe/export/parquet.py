"""Parquet: one flat file per part, embeddings as fixed-size lists beside the metadata.

OUT/embeddings_00000.parquet   OUT/_croissant.json (Spark and pandas take it for data without the underscore)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..load import EmbeddingDataset
from ..manifest import FileRecord, ShardManifest, shard_name
from ..store import parquet
from ..store.hashed_writer import write_hashed
from .base import ExportConfig, ExportPart, PlannedPart, avoid_name_clash
from .croissant import write_croissant


class Parquet:
    """One file per part: image_embedding, text_embedding, text_tokens if requested, and all metadata."""

    folders: tuple[str, ...] = ("",)

    def __init__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> None:
        self._dataset = dataset
        self.options: dict[str, Any] = {}
        self._digits = max(5, len(str(len(plan))))

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """One file."""
        return (write_table(out, f"embeddings_{shard_name(part.planned.number, self._digits)}.parquet", part),)

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """The description for Croissant; an existing one, possibly edited, is kept."""
        write_croissant(out, "_croissant.json", self._dataset, written, "embeddings_*.parquet")

    def opened_by(self, out: str) -> str:
        """pandas; Spark and DuckDB read the same folder."""
        return f'pandas.read_parquet("{out}")'


def write_table(out: str, path: str, part: ExportPart) -> FileRecord:
    """Write a part as one parquet file."""
    arrays = {parquet.EMBEDDINGS["image"]: part.image, parquet.EMBEDDINGS["text"]: part.text}
    metadata = avoid_name_clash(part.metadata, parquet.OWN_COLUMNS)
    return write_hashed(out, path, lambda stream: parquet.save_table(stream, arrays, metadata, part.text_tokens))
