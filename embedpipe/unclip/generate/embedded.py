"""Texts and embeddings as models take them: of norm 1, or raw, as the encoder's projection gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.priors.base import Prior
from dalle2_core.types import EmbeddedText
from embedpipe.encode import Encoder
from embedpipe.progress import CutCaptions

from ..data.empty_text import teach_empty_text
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


def texts_for_prior(
    prior: Prior, encoder: Encoder, texts: Sequence[str], with_states: bool, cond_scale: float, watching: Watching
) -> tuple[EmbeddedText, Tensor]:
    """What a prior reads of b texts, and their embeddings of norm 1 [b, d].

    A prior of diffusers that is to be guided is told the empty text first, if it does not know it.
    """
    if cond_scale != 1:
        teach_empty_text(prior, lambda: encoder)
    text, norms = embedded_texts(encoder, texts, with_states, watching)
    unit = text.text_embed
    return (replace(text, text_embed=unit * norms[:, None]) if prior.raw else text), unit


def diff_shares(count: int) -> list[float]:
    """How far pictures go from one towards a text: the paper goes to between 0.25 and 0.5 (2204.06125, section 3.3)."""
    return [float(share) for share in np.linspace(0, 0.5, count)]


def of_norm_one(rows: np.ndarray) -> Tensor:
    """float32 [n, d] of norm 1."""
    return F.normalize(torch.from_numpy(np.asarray(rows, np.float32)), dim=-1)
