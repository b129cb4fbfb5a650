"""What the towers made of one input shard, put together into an embedding shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..columns import EXTRA, FIXED, optional_string, split_row, storable
from ..execute import Task
from ..ragged import RaggedRows
from ..types import EmbeddingShard, Reject
from .base import Later
from .pictures import Row


@dataclass(slots=True)
class Gathered:
    """The rows and rejects of a shard so far, embeddings batch by batch, and where the time went (s).

    image: float32 [b, dim] of each batch, perhaps still on their way from the device. text: float32 [n, dim].
    text_tokens: states of the tokens, in the stored dtype; equal captions share theirs. sha256: of the input shard,
    known at its end.
    """

    task: Task
    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    image: list[Later] = field(default_factory=list)
    text: np.ndarray | None = None
    text_tokens: RaggedRows | None = None
    sha256: str = ""
    spent_s: dict[str, float] = field(default_factory=dict)

    @property
    def rows_in(self) -> int:
        """Samples that the input shard holds, rejects counted."""
        return len(self.rows) + len(self.rejects)

    def shard(self, dtype: str, columns: Mapping[str, str]) -> EmbeddingShard:
        """All of it as an embedding shard; rows whose numbers are not finite become rejects."""
        image = np.concatenate([batch.numpy() for batch in self.image]) if self.image else None
        text, tokens = self.text, self.text_tokens
        finite = np.ones(len(self.rows), bool)
        for array in (image, text):
            if array is not None:
                finite &= np.isfinite(array).all(axis=1)
        if tokens is not None:
            finite &= tokens.finite()
        rejects = [*self.rejects, *(_nonfinite(self.rows[i]) for i in np.flatnonzero(~finite))]
        rows = [row for row, kept in zip(self.rows, finite, strict=True) if kept]
        image = image[finite] if image is not None else None
        text = text[finite] if text is not None else None
        similarity: list[float | None] = [None] * len(rows)
        if image is not None and text is not None:
            similarity = np.einsum("nd,nd->n", image, text).tolist()
        return EmbeddingShard(
            number=self.task.number,
            image=image.astype(dtype) if image is not None else None,
            text=text.astype(dtype) if text is not None else None,
            metadata=_metadata(rows, self.task.name, similarity, columns),
            rejects=tuple(rejects),
            text_tokens=tokens.take(finite) if tokens is not None else None,
        )


def _nonfinite(row: Row) -> Reject:
    return Reject(row.sample.key, row.sample.index, "encode", "embedding_nonfinite", "the model gave NaN or infinity")


def _metadata(
    rows: Sequence[Row], source: str, similarity: list[float | None], columns: Mapping[str, str]
) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in (*FIXED, *columns, EXTRA)}
    for row, alike in zip(rows, similarity, strict=True):
        sample = row.sample
        fixed = {
            "key": sample.key,
            "image_path": sample.key,
            "caption": storable(sample.caption) if sample.caption is not None else None,
            "url": optional_string(sample.metadata.get("url")),
            "width": row.width,
            "height": row.height,
            "sha256": row.sha256,
            "similarity": alike,
            "src_shard": source,
            "src_index": sample.index,
        }
        passed = split_row(sample.metadata, columns, fixed)
        for name, value in {**fixed, **passed}.items():
            table[name].append(storable(value) if isinstance(value, str) else value)
    return table
