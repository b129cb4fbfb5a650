"""Count the caption tokens lost to truncation at the model's context length.

A truncated caption fills its row of tokens, so only full rows are tokenised again, without the limit. The model's own
tokens (start, end) are in both counts, so the difference is in tokens of the caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

CutCounter = Callable[[Sequence[str], torch.Tensor], np.ndarray]
"""(captions, their tokens [n, context length]) → int32 [n], tokens cut off of each."""

_SIMPLE, _HUGGING_FACE = "open_clip.tokenizer.SimpleTokenizer", "open_clip.tokenizer.HFTokenizer"
# Of Hugging Face's mode `clips`: start and end token, and a class token after the padding.
_CLIPS_TOKENS = 3


def cut_counter(tokenizer: Any) -> CutCounter | None:
    """The counting function for an open_clip tokenizer; None if unknown, or if it samples instead of truncating."""
    length_of = _whole_length(tokenizer)
    if length_of is None:
        return None
    may_be_cut = _may_be_cut(tokenizer)

    def count(captions: Sequence[str], tokens: torch.Tensor) -> np.ndarray:
        cut = np.zeros(len(captions), np.int32)
        for row in np.flatnonzero(may_be_cut(captions, tokens)).tolist():
            cut[row] = max(0, length_of(captions[row]) - tokens.shape[1])
        return cut

    return count


def _whole_length(tokenizer: Any) -> Callable[[str], int] | None:
    """The tokens of a caption without truncation, including the model's special tokens."""
    # Exact class: a subclass may behave differently.
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__name__}"
    if kind == _SIMPLE and tokenizer.reduction_fn is None:
        return lambda caption: len(tokenizer.encode(caption)) + 2
    if kind != _HUGGING_FACE or tokenizer.tokenizer_mode not in ("", "clips"):
        return None
    inner, clean = tokenizer.tokenizer, tokenizer.clean_fn
    if tokenizer.tokenizer_mode == "clips":
        return lambda caption: len(_ids(inner, clean(caption), add_special_tokens=False)) + _CLIPS_TOKENS
    return lambda caption: len(_ids(inner, clean(caption)))


def _ids(inner: Any, text: str, **options: Any) -> list[int]:
    # verbose=False, or it warns of every text longer than its model's context.
    ids: list[int] = inner(text, truncation=False, padding=False, verbose=False, **options).input_ids
    return ids


def _may_be_cut(tokenizer: Any) -> Callable[[Sequence[str], torch.Tensor], np.ndarray]:
    """bool [n]: rows without padding at their end, which include every truncated row.

    Two positions are checked: the last may be an end token with the padding's id. Elsewhere that id occurs only if the
    caption spells out a special token.
    """
    inner = getattr(tokenizer, "tokenizer", None)
    pad_id, special = getattr(inner, "pad_token_id", None) or 0, tuple(getattr(inner, "all_special_tokens", ()))
    places = slice(-2, -1) if getattr(tokenizer, "tokenizer_mode", "") == "clips" else slice(-2, None)

    def look(captions: Sequence[str], tokens: torch.Tensor) -> np.ndarray:
        spelt = np.array([any(token in caption for token in special) for caption in captions], bool)
        return np.asarray((tokens[:, places] != pad_id).any(dim=1).numpy() | spelt)

    return look
