"""clip-retrieval's folders and file numbers.

    OUT/img_emb/img_emb_0.npy   OUT/text_emb/text_emb_0.npy   OUT/metadata/metadata_0.parquet

Its readers pair files by their position in the sorted list: numbers are zero-padded to the width of the last one and
consecutive, and no file is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..load import EmbeddingDataset
from ..manifest import FileRecord, ShardManifest
from ..store import layout
from ..store.hashed_writer import write_npy, write_parquet
from .base import ExportConfig, ExportPart, PlannedPart


class ClipRetrieval:
    """Per part, an .npy for each modality and the metadata."""

    folders: tuple[str, ...] = ("img_emb", "text_emb", "metadata")

    def __init__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> None:
        self.options: dict[str, Any] = {}
        self._digits = len(str(len(plan)))

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """Up to three files."""
        number = part.planned.number
        written = [
            write_npy(out, layout.embeddings(modality, number, self._digits), array)
            for modality, array in (("image", part.image), ("text", part.text))
            if array is not None
        ]
        return (*written, write_parquet(out, layout.metadata(number, self._digits), part.metadata))

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """Nothing."""

    def opened_by(self, out: str) -> str:
        """embedding-reader; `clip-retrieval index` and autofaiss read the same folders."""
        return (
            f'embedding_reader.EmbeddingReader("{out}/img_emb", file_format="parquet_npy", '
            f'metadata_folder="{out}/metadata", meta_columns=["key", "caption"])'
        )
