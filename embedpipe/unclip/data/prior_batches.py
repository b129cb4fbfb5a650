"""Rows of an embedding data set as a prior sees them: text and image embeddings side by side, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from dalle2_core.presets.prior import PriorRecipe
from dalle2_core.types import PriorBatch
from embedpipe.errors import InputError
from embedpipe.load import EmbeddingDataset
from embedpipe.types import EmbeddingBatch

from .row_policy import RowPolicy
from .token_states import TokenStates, token_states

# Rows whose token states are padded together where all rows of a split are looked at.
_ROWS_WITH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class PriorRows:
    """A data set, and how its rows are taken.

    tokens: the states of the captions' tokens, or None. norms: of all rows by side, float32 [n], by which embeddings
    are multiplied for a prior of raw ones; None leaves them as they are stored.
    """

    dataset: EmbeddingDataset
    policy: RowPolicy
    tokens: TokenStates | None = None
    norms: Mapping[str, np.ndarray] | None = None

    def for_raw(self, raw: bool) -> PriorRows:
        """The same rows for a prior of raw embeddings, or of norm 1. Raises DatasetError where norms are not known."""
        return replace(self, norms=read_norms(self.dataset) if raw else None)

    def checked(self, rows: np.ndarray) -> np.ndarray:
        """See `RowPolicy.checked`, of both sides."""
        return self.policy.checked(self.dataset, rows, ("text", "image"))

    def pairs(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and image embeddings of some rows, float32 [n, d]. Raises DatasetError, see `checked`."""
        text, image = (self.dataset.require(side)[rows].astype(np.float32) for side in ("text", "image"))
        return self._checked_pair(text, image, rows)

    def batches(self, rows: np.ndarray) -> Iterator[PriorBatch]:
        """Some rows in order: all at once without tokens, else in parts. Raises DatasetError, see `checked`."""
        if self.tokens is None:
            yield PriorBatch(*self.pairs(rows))
            return
        for start in range(0, len(rows), _ROWS_WITH_TOKENS):
            part = rows[start : start + _ROWS_WITH_TOKENS]
            states, mask = self.tokens.batch(part)
            yield PriorBatch(*self.pairs(part), torch.from_numpy(states.astype(np.float32)), torch.from_numpy(mask))

    def prior_batch(self, batch: EmbeddingBatch) -> PriorBatch:
        """What a loader gave, for training. Raises DatasetError, see `checked`."""
        assert batch.text is not None
        assert batch.image is not None
        states, mask = batch.text_tokens, batch.text_mask
        if states is None and self.tokens is not None:
            assert batch.rows is not None
            states, mask = self.tokens.batch(batch.rows)
        return PriorBatch(
            *self._checked_pair(batch.text, batch.image, batch.rows),
            torch.from_numpy(states.astype(np.float32, copy=False)) if states is not None else None,
            torch.from_numpy(mask) if mask is not None else None,
        )

    def _checked_pair(
        self, text: np.ndarray, image: np.ndarray, rows: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        taken = self.policy.taken(self.dataset.path, {"text": text, "image": image})
        if self.norms is not None:
            assert rows is not None
            taken = {side: it * self.norms[side][rows, None] for side, it in taken.items()}
        return torch.from_numpy(taken["text"]), torch.from_numpy(taken["image"])


def read_norms(dataset: EmbeddingDataset) -> dict[str, np.ndarray]:
    """The norms of all rows, by side, float32 [n]. Raises DatasetError where they were not stored."""
    return {side: dataset.require(side).raw().norms() for side in ("text", "image")}


def open_rows(emb: str, recipe: PriorRecipe, policy: RowPolicy, device: str | None, speaks: bool = True) -> PriorRows:
    """The data set `emb` for a recipe.

    device: of the text tower that makes token states which are wanted and not stored, and says so if it `speaks`; None
    for a look at the rows that loads none. Raises DatasetError where it has no rows or lacks a side, InputError where
    token states do not fit, ModelError where the text tower is not to be had.
    """
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    for side in ("text", "image"):
        dataset.require(side)
    if not recipe.text_tokens or (device is None and dataset.text_tokens is None):
        return PriorRows(dataset, policy)
    return PriorRows(dataset, policy, _fitting(token_states(dataset, device or "cpu", speaks), recipe, dataset))


def _fitting(column: TokenStates, recipe: PriorRecipe, dataset: EmbeddingDataset) -> TokenStates:
    """The token states. Raises InputError where the network cannot take them."""
    if recipe.prior == "unclip":  # its network reads states as wide as embeddings, and says itself how many
        return column
    network = recipe.network.for_embeddings(dataset.card.dim)
    if column.width != network.dim:
        raise InputError(
            f"{dataset.path}: text tokens are {column.width} wide, but network.dim is {network.dim}",
            f"Give `network.dim={column.width}`",
        )
    longest = int(column.lengths().max(initial=0))
    if longest > network.max_text_len:
        raise InputError(
            f"{dataset.path}: a text has up to {longest} tokens, but network.max_text_len is {network.max_text_len}",
            f"Give `network.max_text_len={longest}`",
        )
    return column
