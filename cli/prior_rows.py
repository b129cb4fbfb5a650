"""Rows of an embedding data set as a prior sees them: text and image embeddings side by side, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dalle2_core.presets import PriorRecipe
from dalle2_core.types import PriorBatch
from embedpipe.errors import DatasetError, InputError
from embedpipe.load import EmbeddingDataset, RaggedColumn
from embedpipe.types import EmbeddingBatch

_NORM_TOLERANCE = 0.01
_SMALLEST_NORM = 1e-6
# All rows are looked at before the first step up to this size, a matter of seconds; beyond, as they are read.
_MOST_BYTES_TO_SCAN = 16 << 30
_ROWS_AT_ONCE = 1 << 14
# Rows whose token states are padded together where all rows of a split are looked at.
_ROWS_WITH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """What becomes of rows that no prior should see. By default they are counted and refused.

    normalise: bring every row to norm 1. drop_nonfinite: leave out rows with NaN or infinity, or of zeros alone.
    """

    normalise: bool = False
    drop_nonfinite: bool = False


@dataclass(frozen=True, slots=True)
class PriorRows:
    """A data set, and how its rows are taken. tokens: the states of the captions' tokens, or None."""

    dataset: EmbeddingDataset
    policy: RowPolicy
    tokens: RaggedColumn | None = None

    def checked(self, rows: np.ndarray) -> np.ndarray:
        """`rows`, or those of them that are finite where the policy drops the others.

        Raises DatasetError that counts what is wrong and names the option that accepts it.
        """
        card = self.dataset.card
        size = len(rows) * card.dim * 2 * np.dtype(card.dtype).itemsize
        if size > _MOST_BYTES_TO_SCAN and not self.policy.drop_nonfinite:
            return rows
        whole = np.ones(len(rows), bool)
        off: dict[str, list[np.ndarray]] = {"text": [], "image": []}
        broken = dict.fromkeys(off, 0)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            for side in off:
                norms = _norms(self.dataset.require(side)[part].astype(np.float32))
                usable = norms > _SMALLEST_NORM
                broken[side] += int((~usable).sum())
                whole[start : start + len(part)] &= usable
                off[side].append(norms[usable & (np.abs(norms - 1) > _NORM_TOLERANCE)])
        if not self.policy.drop_nonfinite:
            _refuse_broken(self.dataset.path, broken)
        if not self.policy.normalise:
            _refuse_off(self.dataset.path, {side: np.concatenate(norms) for side, norms in off.items() if norms})
        return rows[whole]

    def pairs(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and image embeddings of some rows, float32 [n, d]. Raises DatasetError, see `checked`."""
        text, image = (self.dataset.require(side)[rows].astype(np.float32) for side in ("text", "image"))
        return self._checked_pair(text, image)

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
        return PriorBatch(
            *self._checked_pair(batch.text, batch.image),
            torch.from_numpy(batch.text_tokens) if batch.text_tokens is not None else None,
            torch.from_numpy(batch.text_mask) if batch.text_mask is not None else None,
        )

    def _checked_pair(self, text: np.ndarray, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        norms = {"text": _norms(text), "image": _norms(image)}
        _refuse_broken(self.dataset.path, {side: int((it <= _SMALLEST_NORM).sum()) for side, it in norms.items()})
        if self.policy.normalise:
            text, image = text / norms["text"][:, None], image / norms["image"][:, None]
        else:
            off = {side: it[np.abs(it - 1) > _NORM_TOLERANCE] for side, it in norms.items()}
            _refuse_off(self.dataset.path, off)
        return torch.from_numpy(text), torch.from_numpy(image)


def open_rows(emb: str, recipe: PriorRecipe, policy: RowPolicy) -> PriorRows:
    """The data set `emb` for a recipe.

    Raises DatasetError where it has no rows, lacks a side or the token states, InputError where they do not fit.
    """
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    for side in ("text", "image"):
        dataset.require(side)
    return PriorRows(dataset, policy, _tokens(dataset, recipe) if recipe.text_tokens else None)


def _tokens(dataset: EmbeddingDataset, recipe: PriorRecipe) -> RaggedColumn:
    """The token states. Raises DatasetError where there are none, InputError where the network cannot take them."""
    column = dataset.require_text_tokens()
    network = recipe.network.for_embeddings(dataset.card.dim)
    if column.width != network.dim:
        raise InputError(
            f"{dataset.path}: text tokens are {column.width} wide, but network.dim is {network.dim}",
            f"Give --set network.dim={column.width}",
        )
    longest = int(column.lengths().max(initial=0))
    if longest > network.max_text_len:
        raise InputError(
            f"{dataset.path}: the longest text has {longest} tokens, but network.max_text_len is "
            f"{network.max_text_len}",
            f"Give --set network.max_text_len={longest}",
        )
    return column


def _norms(rows: np.ndarray) -> np.ndarray:
    """float32 [n]; 0 for a row with NaN or infinity."""
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(np.where(np.isfinite(squares), squares, 0.0)).astype(np.float32)


def _refuse_broken(path: str, counts: dict[str, int]) -> None:
    if any(counts.values()):
        found = " and ".join(f"{count:,} {side}" for side, count in counts.items() if count)
        raise DatasetError(
            f"{path}: {found} rows hold NaN or infinity, or zeros alone",
            "Give --drop-nonfinite to leave them out; `embedpipe verify` says whether they were damaged",
        )


def _refuse_off(path: str, norms: dict[str, np.ndarray]) -> None:
    off = {side: it for side, it in norms.items() if len(it)}
    if off:
        found = " and ".join(f"{len(it):,} {side}" for side, it in off.items())
        least, most = min(it.min() for it in off.values()), max(it.max() for it in off.values())
        raise DatasetError(
            f"{path}: {found} rows are not of norm 1 (norms from {least:.3g} to {most:.3g})",
            "Give --normalise to bring them to it, or encode them again",
        )
