"""The empty text as a text tower embeds it: what guidance of diffusers' priors leads away from, and what they learn in
place of a dropped text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from dalle2_core.priors.base import Prior
from dalle2_core.priors.unclip import UnclipPrior
from dalle2_core.types import EmbeddedText
from embedpipe.encode import Encoder
from embedpipe.index import query_encoder
from embedpipe.load import EmbeddingDataset


def lacks_empty_text(prior: Prior) -> bool:
    """Whether a prior has a use for the empty text, and does not know it."""
    return isinstance(prior, UnclipPrior) and prior.net.config.reads_time and not prior.knows_null_text


def empty_text_of(prior: Prior, encoder: Encoder) -> EmbeddedText:
    """What the encoder makes of "", as the prior reads it: its embedding raw or of norm 1, [1, d]; states [1, l, w]."""
    reads_tokens = isinstance(prior, UnclipPrior) and prior.net.reads_tokens
    if reads_tokens:
        both = encoder.text_states([""])
        found, (states, mask) = both.embeddings, both.tokens.padded()
    else:
        found = encoder.texts([""])
    embed = torch.from_numpy(np.asarray(found.rows, np.float32))
    embed = embed / embed.norm(dim=-1, keepdim=True)
    text = EmbeddedText(embed * float(found.norms[0]) if prior.raw else embed)
    if not reads_tokens:
        return text
    return replace(text, text_encodings=torch.from_numpy(states.astype(np.float32)), text_mask=torch.from_numpy(mask))


def teach_empty_text(prior: Prior, encoder: Callable[[], Encoder]) -> None:
    """Tell a prior that lacks it the empty text; `encoder` is loaded for no other. Raises as `encoder_of` does."""
    if isinstance(prior, UnclipPrior) and lacks_empty_text(prior):
        prior.set_null_text(empty_text_of(prior, encoder()))


def encoder_of_data(dataset: EmbeddingDataset, device: str = "cpu") -> Encoder:
    """The encoder that made a data set. Raises as `encoder_of` does."""
    return query_encoder(dataset, device=device, precision="auto" if device.startswith("cuda") else "fp32")
