"""Collect the embeddings of one input shard into an embedding shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..accounts import Accounts
from ..columns import (
    IMAGE_NORM,
    TEXT_NORM,
    TEXT_TOKENS_CUT,
    column_names,
    optional_string,
    passed_through,
    split_row,
    storable,
)
from ..execute import Task
from ..plural import plural
from ..ragged import RaggedRows
from ..taken_down import TakenDown
from ..types import EmbeddingShard, Reject
from .base import Embedded, EmbeddedTexts, Later
from .batching import Row


@dataclass(slots=True)
class ShardBuffer:
    """The rows and rejects of a shard so far, embeddings batch by batch, and timings (s).

    image: embeddings of each batch, perhaps still being copied from the device. text_tokens: token states, in the
    stored dtype; equal captions share theirs. sha256 and accounts: of the input shard, known at its end. most_tokens: a
    sample whose caption has more is rejected; None to truncate it.
    """

    task: Task
    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    image: list[Later] = field(default_factory=list)
    text: EmbeddedTexts | None = None
    text_tokens: RaggedRows | None = None
    sha256: str = ""
    accounts: Accounts | None = None
    spent_s: dict[str, float] = field(default_factory=dict)
    most_tokens: int | None = None

    @property
    def rows_in(self) -> int:
        """Samples in the input shard, including rejects."""
        return len(self.rows) + len(self.rejects)

    def shard(self, dtype: str, columns: Mapping[str, str], taken: TakenDown | None = None) -> EmbeddingShard:
        """The contents as an embedding shard.

        Rows with non-finite values become rejects, and so do those with too long captions, if requested. What was
        taken out of the output before is left out, rows and rejects alike.
        """
        image, text, tokens = _together(self.image), self.text, self.text_tokens
        gone = self._taken(taken) if taken is not None else frozenset()
        refused = {row: reject for row, reject in self._refused(image).items() if row not in gone}
        kept = np.array([row not in refused and row not in gone for row in range(len(self.rows))], bool)
        if image is not None:
            image = Embedded(image.rows[kept], image.norms[kept])
        if text is not None:
            text = text.take(kept)
        return EmbeddingShard(
            number=self.task.number,
            image=image.rows.astype(dtype) if image is not None else None,
            text=text.rows.astype(dtype) if text is not None else None,
            metadata=_metadata(
                [self.rows[row] for row in np.flatnonzero(kept)], self.task.name, _measured(image, text), columns
            ),
            rejects=(*(it for it in self.rejects if taken is None or not self._names(taken, it)), *refused.values()),
            text_tokens=tokens.take(kept) if tokens is not None else None,
            tokens_cut=text.tokens_cut if text is not None else None,
        )

    def _taken(self, taken: TakenDown) -> frozenset[int]:
        """The rows that were taken out of the output before."""
        return frozenset(
            place
            for place, row in enumerate(self.rows)
            if taken.has_row(
                self.task.name, row.sample.key, optional_string(row.sample.metadata.get("url")), row.sha256
            )
        )

    def _names(self, taken: TakenDown, reject: Reject) -> bool:
        return taken.has_row(self.task.name, reject.key, None, None)

    def _refused(self, image: Embedded | None) -> dict[int, Reject]:
        """Faults of encoded rows, by row, in order."""
        text, tokens = self.text, self.text_tokens
        cut = (
            text.tokens_cut if text is not None and text.tokens_cut is not None else np.zeros(len(self.rows), np.int32)
        )
        too_long = cut > 0 if self.most_tokens is not None else np.zeros(len(self.rows), bool)
        finite = np.ones(len(self.rows), bool)
        for side in (image, text):
            if side is not None:
                finite &= np.isfinite(side.rows).all(axis=1) & np.isfinite(side.norms)
        if tokens is not None:
            finite &= tokens.finite()
        refused = {}
        for row in np.flatnonzero(too_long | ~finite).tolist():
            sample = self.rows[row].sample
            if too_long[row]:
                reason = "caption_too_long", f"{plural(int(cut[row]), 'token')} more than {self.most_tokens}"
            else:
                reason = "embedding_nonfinite", "the model gave NaN or infinity"
            refused[row] = Reject(sample.key, sample.index, "encode", *reason)
        return refused


def _together(batches: Sequence[Later]) -> Embedded | None:
    made = [batch.wait() for batch in batches]
    if not made:
        return None
    return Embedded(np.concatenate([batch.rows for batch in made]), np.concatenate([batch.norms for batch in made]))


def _measured(image: Embedded | None, text: EmbeddedTexts | None) -> dict[str, list[Any]]:
    """Measurements of each row's embeddings, by column; missing columns are null."""
    found: dict[str, list[Any]] = {}
    if image is not None:
        found[IMAGE_NORM] = image.norms.tolist()
    if text is not None:
        found[TEXT_NORM] = text.norms.tolist()
        if text.tokens_cut is not None:
            found[TEXT_TOKENS_CUT] = text.tokens_cut.tolist()
    if image is not None and text is not None:
        found["similarity"] = np.einsum("nd,nd->n", image.rows, text.rows).tolist()
    return found


def _metadata(
    rows: Sequence[Row], source: str, measured: Mapping[str, Sequence[Any]], columns: Mapping[str, str]
) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in column_names(columns)}
    of_input = passed_through(columns)
    ours = table.keys() - of_input.keys()
    for place, row in enumerate(rows):
        sample = row.sample
        stored = {
            "key": sample.key,
            "image_path": sample.key,
            "caption": storable(sample.caption) if sample.caption is not None else None,
            "url": optional_string(sample.metadata.get("url")),
            "width": row.width,
            "height": row.height,
            "sha256": row.sha256,
            "src_shard": source,
            "src_index": sample.index,
        }
        stored |= {name: measured[name][place] if name in measured else None for name in ours - stored.keys()}
        passed = split_row(sample.metadata, of_input, stored)
        for name, value in {**stored, **passed}.items():
            table[name].append(storable(value) if isinstance(value, str) else value)
    return table
