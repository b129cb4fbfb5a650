"""Encode captions with a text tower, without computing on padding.

CLIP's text tower is causal and pooled at the end token: positions after that token cannot change the result. So
captions are sorted by length and each batch is cut to its longest. Towers with bidirectional attention, or pooled
elsewhere, get their full length.

Token states are stored for real tokens only: from the start token to the end token or, where a tokenizer has no
separate end token (SigLIP's pads with it), up to the padding. A token appended by the tower (CoCa's) is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..ragged import RaggedRows
from .cut_captions import cut_counter

# Runs of a tower at different lengths differ only by rounding; a wrong truncation differs by tenths.
_SAME = 1e-2


class TextTower:
    """An open_clip model's text side. Embeddings are [n, dim] on the model's device, not normalised."""

    def __init__(self, model: Any, tokenizer: Any, device: str, batch_size: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size
        self._pad_id = _pad_id(tokenizer)
        self._count_cut = cut_counter(tokenizer)
        self._cut = _is_causal(model) and self._cutting_changes_nothing()

    @property
    def cuts(self) -> bool:
        """Whether batches are truncated to their longest caption."""
        return self._cut

    @property
    def counts_cut(self) -> bool:
        """Whether the number of truncated tokens is known."""
        return self._count_cut is not None

    def embed(self, captions: Sequence[str]) -> tuple[torch.Tensor, np.ndarray | None]:
        """(float [n, dim], int32 [n] truncated tokens if known), row i for caption i."""
        embedded, tokens_cut, _ = self.begin(captions, None).result()
        return embedded, tokens_cut

    @property
    def has_states(self) -> bool:
        """Whether `states` is available: towers of other libraries (Hugging Face's) do not expose theirs."""
        tower = _tower(self._model)
        return hasattr(tower, "ln_final") and hasattr(tower, "transformer")

    def states(self, captions: Sequence[str], dtype: str) -> tuple[torch.Tensor, np.ndarray | None, RaggedRows]:
        """The result of `embed`, and the last hidden states of each caption's real tokens, in memory as `dtype`."""
        embedded, tokens_cut, states = self.begin(captions, dtype).result()
        assert states is not None
        return embedded, tokens_cut, states

    def begin(self, captions: Sequence[str], dtype: str | None) -> TextPass:
        """Tokenise captions, on any thread; the device is not used yet. dtype: of their token states; None: without."""
        tokens = self._tokenizer(list(captions))
        cut = self._count_cut(captions, tokens) if self._count_cut is not None else None
        return TextPass(self, tokens, cut, dtype)

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens of each row, without padding."""
        return _lengths(tokens, self._pad_id)

    def encode(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Embeddings of a batch of tokens [b, n], of which no row has more than `length`."""
        if length == tokens.shape[1]:
            return self._encode(tokens)
        with _shortened(_tower(self._model), length):
            return self._encode(tokens[:, :length])

    def encode_with_states(self, tokens: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `encode`, and the output of the tower's blocks [b, length, width], before the final layer norm.

        Not the norm's own output: CoCa's tower only normalises the token it appends.
        """
        seen: list[torch.Tensor] = []
        hook = _tower(self._model).transformer.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        try:
            return self.encode(tokens, length), seen[0][:, :length]
        finally:
            hook.remove()

    @property
    def states_width(self) -> int:
        """Numbers in a token's state."""
        return int(_tower(self._model).ln_final.weight.shape[0])

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """The tower's final layer norm of token states."""
        found: torch.Tensor = _tower(self._model).ln_final(states)
        return found

    def batches(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
        """(numbers of its rows, tokens to encode of each) of each batch."""
        order = torch.argsort(lengths, stable=True) if self._cut else torch.arange(len(tokens))
        for rows in torch.split(order, self._batch_size):
            yield rows, int(lengths[rows].max()) if self._cut else tokens.shape[1]

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        # Explicit, since CoCa's models normalise by default.
        encoded: torch.Tensor = self._model.encode_text(tokens.to(self._device), normalize=False)
        return encoded

    @torch.inference_mode()
    def _cutting_changes_nothing(self) -> bool:
        """Tested by running it: the attributes of an unknown tower are not reliable."""
        tokens = self._tokenizer(["a", "a photo of a cat on a mat"])
        length = int(_lengths(tokens, self._pad_id).max())
        if length >= tokens.shape[1]:
            return True
        full, cut = self._encode(tokens).float(), self.encode(tokens, length).float()
        return bool(torch.nn.functional.cosine_similarity(full, cut).min() > 1 - _SAME)


class TextPass:
    """Tokenised captions on their way through a tower, one batch at a time. dtype: of token states; None: without."""

    def __init__(
        self, tower: TextTower, tokens: torch.Tensor, tokens_cut: np.ndarray | None, dtype: str | None
    ) -> None:
        self._tower = tower
        self._tokens = tokens
        self._tokens_cut = tokens_cut
        lengths = tower.lengths(tokens)
        self._states = None if dtype is None else _GatheredStates(tower, lengths, dtype)
        self._coming = tower.batches(tokens, lengths)
        self._encoded: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.left = len(tokens)
        """Captions that are not encoded yet."""

    @property
    def has_states(self) -> bool:
        """Whether token states were requested."""
        return self._states is not None

    def step(self) -> None:
        """Encode one more batch, if one is left."""
        found = next(self._coming, None)
        if found is None:
            return
        rows, length = found
        if self._states is None:
            embedded = self._tower.encode(self._tokens[rows], length)
        else:
            embedded, states = self._tower.encode_with_states(self._tokens[rows], length)
            self._states.take(rows, states)
        self._encoded.append((rows, embedded))
        self.left -= len(rows)

    def result(self) -> tuple[torch.Tensor, np.ndarray | None, RaggedRows | None]:
        """Embeddings [n, dim] on the device, truncated tokens if known, and token states if requested, in order."""
        while self.left:
            self.step()
        states = self._states.ragged() if self._states is not None else None
        return _in_row_order(self._encoded), self._tokens_cut, states


class _GatheredStates:
    """Token states in memory, filled batch by batch, so that only one batch of padded ones is."""

    def __init__(self, tower: TextTower, lengths: torch.Tensor, dtype: str) -> None:
        self._tower = tower
        self._lengths = lengths
        self._values = np.empty((int(self._lengths.sum()), tower.states_width), dtype)
        self._starts = np.empty(len(lengths), np.int64)
        self._filled = 0
        self._dtype = getattr(torch, dtype)

    def take(self, rows: torch.Tensor, padded: torch.Tensor) -> None:
        """Keep the states of the real tokens of `rows`."""
        lengths = self._lengths[rows]
        real = torch.arange(padded.shape[1]) < lengths[:, None]
        states = self._tower.normed(padded[real.to(padded.device)])
        self._values[self._filled : self._filled + len(states)] = states.to(self._dtype).cpu().numpy()
        self._starts[rows.numpy()] = self._filled + (lengths.cumsum(0) - lengths).numpy()
        self._filled += len(states)

    def ragged(self) -> RaggedRows:
        """All of them, row i for caption i."""
        return RaggedRows(self._values, self._starts, self._lengths.numpy().astype(np.int32))


def _tower(model: Any) -> Any:
    """The module with positions and mask: the model itself for CLIP, `.text` for CustomTextCLIP."""
    return getattr(model, "text", model)


def _is_causal(model: Any) -> bool:
    tower = _tower(model)
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    return (
        getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "positional_embedding", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and pool in ("argmax", "eos")
    )


def _pad_id(tokenizer: Any) -> int:
    """The padding id of a tokenizer: zero for CLIP's own, an attribute of Hugging Face's."""
    said = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None)
    return 0 if said is None else int(said)


def _lengths(tokens: torch.Tensor, pad_id: int) -> torch.Tensor:
    """Tokens of each row up to the last non-padding one, at least 1. Within a caption the padding id may be a word."""
    places = torch.arange(1, tokens.shape[1] + 1)
    return ((tokens != pad_id) * places).amax(dim=1).clamp(min=1)


def _in_row_order(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Assemble batches, each with its row numbers, into one tensor."""
    encoded = torch.cat([made for _, made in batches])
    out = torch.empty_like(encoded)
    out[torch.cat([rows for rows, _ in batches]).to(encoded.device)] = encoded
    return out


@contextlib.contextmanager
def _shortened(tower: Any, length: int) -> Iterator[None]:
    """Within the block, the tower takes `length` tokens: its positions and mask are truncated."""
    positions, mask = tower.positional_embedding, tower.attn_mask
    tower.positional_embedding = torch.nn.Parameter(positions[:length], requires_grad=False)
    tower.attn_mask = mask[:length, :length]
    try:
        yield
    finally:
        tower.positional_embedding, tower.attn_mask = positions, mask
