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
        tokens, tokens_cut = self._tokenised(captions)
        batches = self._batches(tokens, _lengths(tokens, self._pad_id))
        embedded = _in_row_order([(rows, self._encode_cut(tokens[rows], length)) for rows, length in batches])
        return embedded, tokens_cut

    def _tokenised(self, captions: Sequence[str]) -> tuple[torch.Tensor, np.ndarray | None]:
        tokens = self._tokenizer(list(captions))
        return tokens, self._count_cut(captions, tokens) if self._count_cut is not None else None

    @property
    def has_states(self) -> bool:
        """Whether `states` is available: towers of other libraries (Hugging Face's) do not expose theirs."""
        tower = _tower(self._model)
        return hasattr(tower, "ln_final") and hasattr(tower, "transformer")

    def states(self, captions: Sequence[str], dtype: str) -> tuple[torch.Tensor, np.ndarray | None, RaggedRows]:
        """The result of `embed`, and the last hidden states of each caption's real tokens, in memory as `dtype`."""
        tokens, tokens_cut = self._tokenised(captions)
        lengths = _lengths(tokens, self._pad_id)
        # Filled batch by batch, so only one batch of padded states is in memory.
        values = np.empty((int(lengths.sum()), _tower(self._model).ln_final.weight.shape[0]), dtype)
        starts = np.empty(len(tokens), np.int64)
        encoded = []
        filled = 0
        for rows, length in self._batches(tokens, lengths):
            with self._watched() as seen:
                encoded.append((rows, self._encode_cut(tokens[rows], length)))
            real = torch.arange(length) < lengths[rows, None]
            states = self._normed(seen[0][:, :length][real.to(seen[0].device)])
            values[filled : filled + len(states)] = states.to(getattr(torch, dtype)).cpu().numpy()
            starts[rows.numpy()] = filled + (lengths[rows].cumsum(0) - lengths[rows]).numpy()
            filled += len(states)
        return _in_row_order(encoded), tokens_cut, RaggedRows(values, starts, lengths.numpy().astype(np.int32))

    def _batches(self, tokens: torch.Tensor, lengths: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
        """(numbers of its rows, tokens to encode of each) of each batch."""
        order = torch.argsort(lengths, stable=True) if self._cut else torch.arange(len(tokens))
        for rows in torch.split(order, self._batch_size):
            yield rows, int(lengths[rows].max()) if self._cut else tokens.shape[1]

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        # Explicit, since CoCa's models normalise by default.
        encoded: torch.Tensor = self._model.encode_text(tokens.to(self._device), normalize=False)
        return encoded

    def _encode_cut(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        if length == tokens.shape[1]:
            return self._encode(tokens)
        with _shortened(_tower(self._model), length):
            return self._encode(tokens[:, :length])

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[torch.Tensor]]:
        """Capture the output of the tower's blocks, before the final layer norm, within the `with` block.

        Not the norm's own output: CoCa's tower only normalises the token it appends.
        """
        seen: list[torch.Tensor] = []
        hook = _tower(self._model).transformer.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        try:
            yield seen
        finally:
            hook.remove()

    def _normed(self, states: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = _tower(self._model).ln_final(states)
        return normed

    @torch.inference_mode()
    def _cutting_changes_nothing(self) -> bool:
        """Tested by running it: the attributes of an unknown tower are not reliable."""
        tokens = self._tokenizer(["a", "a photo of a cat on a mat"])
        length = int(_lengths(tokens, self._pad_id).max())
        if length >= tokens.shape[1]:
            return True
        full, cut = self._encode(tokens).float(), self._encode_cut(tokens, length).float()
        return bool(torch.nn.functional.cosine_similarity(full, cut).min() > 1 - _SAME)


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
