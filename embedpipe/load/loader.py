"""Batches of embeddings for training, from any step on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..types import EmbeddingBatch
from .dataset import EmbeddingDataset
from .shuffle import batches_from

# Up to this size the columns are held in memory; random rows from a disk would be slower than any model here.
_HELD_IN_MEMORY_BYTES = 2 << 30


class EmbeddingLoader:
    """Shuffled batches of the given rows of a data set; the order is a function of (seed, step) alone.

    `loader.batches(step)` → float32 batches from that step on, without end, for as long as they are asked for.
    text_tokens: hand out the states of the captions' tokens, too, padded to the longest of each batch; they are read as
    they are asked for. Raises DatasetError where they were not stored.
    """

    def __init__(
        self, dataset: EmbeddingDataset, rows: np.ndarray, batch_size: int, seed: int = 0, text_tokens: bool = False
    ) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        held = len(rows) * dataset.card.dim * 2 * np.dtype(dataset.card.dtype).itemsize <= _HELD_IN_MEMORY_BYTES
        self._image = _Column(dataset, "image", rows, held) if dataset.image is not None else None
        self._text = _Column(dataset, "text", rows, held) if dataset.text is not None else None
        self._tokens = dataset.require_text_tokens() if text_tokens else None

    def batches(self, step: int = 0) -> Iterator[EmbeddingBatch]:
        """Batches `step`, `step + 1`, …: image and text float32 [batch_size, dim]."""
        for places in batches_from(np.arange(len(self._rows)), self._batch_size, self._seed, step):
            states, mask = self._tokens.batch(self._rows[places]) if self._tokens is not None else (None, None)
            yield EmbeddingBatch(
                image=self._image.take(places) if self._image is not None else None,
                text=self._text.take(places) if self._text is not None else None,
                text_tokens=states.astype(np.float32) if states is not None else None,
                text_mask=mask,
                rows=self._rows[places],
            )


class _Column:
    """Some rows of one modality, from memory or from the files."""

    def __init__(self, dataset: EmbeddingDataset, modality: str, rows: np.ndarray, held: bool) -> None:
        self._column = dataset.require(modality)
        self._rows = rows
        self._held = self._column[rows] if held else None

    def take(self, places: np.ndarray) -> np.ndarray:
        """float32 [len(places), dim] of the rows at those places among the given rows."""
        found = self._held[places] if self._held is not None else self._column[self._rows[places]]
        return found.astype(np.float32)
