"""Captions through a text tower, without paying for padding.

CLIP's text tower is causal and read off at the end token: what comes behind that token cannot change the result. So
captions are sorted by length and each batch is cut to its longest. Towers that look both ways, or are read off
elsewhere, get their full length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

# Two runs of one tower at different lengths differ by rounding only; an error in the cut shows as tenths.
_SAME = 1e-2


class TextTower:
    """An open_clip model's text side. `embed(captions)` → [n, dim] on the model's device, not normalised."""

    def __init__(self, model: Any, tokenizer: Any, device: str, batch_size: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size
        self._cut = _is_causal(model) and self._cutting_changes_nothing()

    @property
    def cuts(self) -> bool:
        """Whether batches are cut to their longest caption."""
        return self._cut

    def embed(self, captions: Sequence[str]) -> torch.Tensor:
        """float [n, dim], row i for caption i."""
        tokens = self._tokenizer(list(captions))
        if not self._cut:
            return torch.cat([self._encode(part) for part in torch.split(tokens, self._batch_size)])
        lengths = _lengths(tokens)
        order = torch.argsort(lengths, stable=True)
        batches = torch.split(order, self._batch_size)
        encoded = torch.cat([self._encode_cut(tokens[rows], int(lengths[rows].max())) for rows in batches])
        out = torch.empty_like(encoded)
        out[order.to(encoded.device)] = encoded
        return out

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self._model.encode_text(tokens.to(self._device))
        return encoded

    def _encode_cut(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        with _shortened(_tower(self._model), length):
            return self._encode(tokens[:, :length])

    @torch.inference_mode()
    def _cutting_changes_nothing(self) -> bool:
        """Try it: a tower of unknown make is believed what it does, not what its attributes say."""
        tokens = self._tokenizer(["a", "a photo of a cat on a mat"])
        length = int(_lengths(tokens).max())
        if length >= tokens.shape[1]:
            return True
        full, cut = self._encode(tokens).float(), self._encode_cut(tokens, length).float()
        return bool(torch.nn.functional.cosine_similarity(full, cut).min() > 1 - _SAME)


def _tower(model: Any) -> Any:
    """The module that holds positions and mask: the model itself for CLIP, `.text` for CustomTextCLIP."""
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


def _lengths(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of each row up to its last that is not padding (0), at least 1."""
    places = torch.arange(1, tokens.shape[1] + 1)
    return ((tokens != 0) * places).amax(dim=1).clamp(min=1)


@contextlib.contextmanager
def _shortened(tower: Any, length: int) -> Iterator[None]:
    """While the block runs, the tower takes `length` tokens: its positions and mask are cut to the first ones."""
    positions, mask = tower.positional_embedding, tower.attn_mask
    tower.positional_embedding = torch.nn.Parameter(positions[:length], requires_grad=False)
    tower.attn_mask = mask[:length, :length]
    try:
        yield
    finally:
        tower.positional_embedding, tower.attn_mask = positions, mask
