"""Converts priors of DALLE2-pytorch, and says whose embeddings they are for, so that other commands take the folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from dalle2_core.convert import ConvertConfig, Converted, convert_prior, save_converted
from embedpipe.callable_package import callable_as
from embedpipe.clip_model.encoder_card import EncoderCard
from embedpipe.errors import InputError
from embedpipe.load import EmbeddingDataset

from .evaluate.priors import PRIOR_RUN
from .runs.record import write_run_record
from .train.plan import SplitConfig


def convert(
    checkpoint: str,
    out: str | None,
    *,
    version: str | None = None,
    weights: Literal["ema", "model"] = "ema",
    training_config: str | None = None,
    predicts: Literal["x0", "v", "noise"] | None = None,
    timesteps: int | None = None,
    beta_schedule: str | None = None,
    image_embed_scale: float | None = None,
    cond_drop_prob: float | None = None,
    self_cond: bool | None = None,
    emb: str | None = None,
    text_tokens: bool = False,
) -> Converted:
    """Convert a prior of DALLE2-pytorch (0.16 and later) to a folder of the form used here. Nothing in it is run.

    out: None reads it and writes nothing. emb: a data set of its encoder; other calls then take `out` for a run of
    `train_prior`. text_tokens: it reads the states of the captions' tokens, too. The others: see `ConvertConfig`.
    Raises CheckpointError, ConfigError; InputError where `emb` has embeddings of another width.
    """
    config = ConvertConfig(
        version=version,
        weights=weights,
        predicts=predicts,
        timesteps=timesteps,
        beta_schedule=beta_schedule,
        image_embed_scale=image_embed_scale,
        cond_drop_prob=cond_drop_prob,
        self_cond=self_cond,
        training_config=None if training_config is None else Path(training_config),
    )
    converted = convert_prior(checkpoint, config)
    encoder = None if emb is None else _encoder_record(emb, converted.prior.image_embed_dim)
    if out is not None:
        save_converted(converted, checkpoint, out)
        if encoder is not None:
            _write_converted_run(out, encoder, text_tokens)
    return converted


def _encoder_record(emb: str, dim: int) -> EncoderCard:
    """The card of the encoder that made `emb`. Raises InputError if its embeddings are not `dim` wide."""
    card = EmbeddingDataset(emb).card
    if card.dim != dim:
        raise InputError(f"{emb}: embeddings of {card.dim} dimensions, but the prior is for {dim}", "Give another")
    return card


def _write_converted_run(out: str, encoder: EncoderCard, text_tokens: bool) -> None:
    """Say of a prior trained elsewhere whose embeddings it is for, as a run of train-prior would."""
    facts = {
        "recipe": {"prior": "diffusion", "text_tokens": text_tokens},
        "split": dataclasses.asdict(SplitConfig()),
        "encoder": dataclasses.asdict(encoder),
        "fingerprint": encoder.fingerprint(),
        "converted": True,
    }
    write_run_record(out, PRIOR_RUN, facts)


callable_as(__name__, ":convert")
