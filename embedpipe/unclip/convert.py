"""Says of a converted prior whose embeddings it is for, so that the other commands take its folder."""

from __future__ import annotations

import dataclasses

from embedpipe.clip_model.encoder_card import EncoderCard
from embedpipe.errors import InputError
from embedpipe.load import EmbeddingDataset

from .evaluate.priors import PRIOR_RUN
from .runs.record import write_run_record
from .train.plan import SplitConfig


def encoder_record(emb: str, dim: int) -> EncoderCard:
    """The card of the encoder that made `emb`. Raises InputError if its embeddings are not `dim` wide."""
    card = EmbeddingDataset(emb).card
    if card.dim != dim:
        raise InputError(f"{emb}: embeddings of {card.dim} dimensions, but the prior is for {dim}", "Give another")
    return card


def write_converted_run(out: str, encoder: EncoderCard, text_tokens: bool) -> None:
    """Say of a prior trained elsewhere whose embeddings it is for, as a run of train-prior would."""
    facts = {
        "recipe": {"prior": "diffusion", "text_tokens": text_tokens},
        "split": dataclasses.asdict(SplitConfig()),
        "encoder": dataclasses.asdict(encoder),
        "fingerprint": encoder.fingerprint(),
        "converted": True,
    }
    write_run_record(out, PRIOR_RUN, facts)
