"""Texts and embeddings as models take them: of norm 1, or raw, as the encoder's projection gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.types import EmbeddedText
from embedpipe.encode import Encoder
from embedpipe.progress import CutCaptions

from .request import Watching


def embedded_texts(
    encoder: Encoder, texts: Sequence[str], with_states: bool, watching: Watching
) -> tuple[EmbeddedText, Tensor]:
    """What the encoder makes of b texts, normalised, and the norms [b] before that.

    with_states: with states of tokens. Texts that are cut are told of.
    """
    states: tuple[Tensor, Tensor] | tuple[None, None] = None, None
    if not with_states:
        found = encoder.texts(texts)
    else:
        both = encoder.text_states(texts)
        found, (rows, mask) = both.embeddings, both.tokens.padded()
        states = torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(mask)
    cut = CutCaptions.of(found.tokens_cut)
    if cut.captions:
        watching.on_note(cut.said(encoder.card.context_length, "text"))
    return EmbeddedText(of_norm_one(found.rows), *states), torch.from_numpy(np.asarray(found.norms, np.float32))


def of_norm_one(rows: np.ndarray) -> Tensor:
    """float32 [n, d] of norm 1."""
    return F.normalize(torch.from_numpy(np.asarray(rows, np.float32)), dim=-1)
