"""The states of captions' tokens: as they are stored, or made when they are asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np

from embedpipe.errors import ModelError, UntrustedModel
from embedpipe.index import query_encoder
from embedpipe.load import EmbeddingDataset
from embedpipe.ragged import RaggedRows

if TYPE_CHECKING:
    from embedpipe.encode import Encoder

logger = logging.getLogger(__name__)
_ROWS_AT_ONCE = 256


class TokenStates(Protocol):
    """A column of token states; `RaggedColumn` is one."""

    width: int

    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [n]; or the most there can be."""
        ...

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(states [n, longest, width] with zeros behind each end, mask [n, longest] bool) of some rows."""
        ...


class MadeStates:
    """Token states that the text tower of a data set makes of its captions whenever they are asked for."""

    def __init__(self, dataset: EmbeddingDataset, encoder: Encoder) -> None:
        self._dataset = dataset
        self._encoder = encoder
        self.width = encoder.text_states(["a"]).tokens.width

    def lengths(self) -> np.ndarray:
        """The most tokens a caption can have, int32 [1]."""
        return np.array([self._encoder.card.context_length], np.int32)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `TokenStates`; as `encode --text-tokens` would have stored them."""
        captions = self._dataset.metadata.take(rows, ("caption",)).column(0).to_pylist()
        parts = [
            self._encoder.text_states([caption or "" for caption in captions[first : first + _ROWS_AT_ONCE]]).tokens
            for first in range(0, len(captions), _ROWS_AT_ONCE)
        ]
        lengths = np.concatenate([part.lengths for part in parts])
        return RaggedRows.packed(np.concatenate([part.flat() for part in parts]), lengths).padded()


def token_states(dataset: EmbeddingDataset, device: str, speaks: bool = True) -> TokenStates:
    """The states that `dataset` holds, or else those its text tower makes, loaded from where its model card says.

    speaks: say so where they are made; of several processes one does. Raises ModelError or RunMismatch where that model
    is not to be had, or has no such states.
    """
    if dataset.text_tokens is not None:
        return dataset.text_tokens
    try:
        made = MadeStates(dataset, query_encoder(dataset, device=device, precision=dataset.card.precision))
    except UntrustedModel:
        raise
    except ModelError as problem:
        raise ModelError(
            f"{dataset.path}: holds no text tokens, and its model makes none: {problem.what}",
            "Encode it again with `embedpipe.encode(text_tokens=True)`, or put the model back where it was",
        ) from problem
    if speaks:
        logger.warning(
            "%s holds no text tokens; its text tower makes them anew for every batch "
            "(`embedpipe.encode(text_tokens=True)` stores them)",
            dataset.path,
        )
    return made
