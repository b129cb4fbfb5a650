"""Converts priors of DALLE2-pytorch and diffusers, and says whose embeddings they are for, as other calls need."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dalle2_core.convert import ConvertConfig, Converted, convert_prior, save_converted
from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.priors.diffusers_folder import ConvertedDiffusers, read_diffusers_prior, write_diffusers_prior
from dalle2_core.priors.registry import ADAPTED, load_prior
from dalle2_core.priors.unclip import UnclipPrior
from dalle2_core.serialization import read_kind
from embedpipe import files
from embedpipe.callable_package import callable_as
from embedpipe.clip_model.encoder_card import EncoderCard
from embedpipe.errors import InputError, OptionError
from embedpipe.load import EmbeddingDataset

from .evaluate.priors import PRIOR_RUN
from .runs.record import read_run_record, write_run_record
from .runs.split import SplitConfig
from .runs.trained_rows import read_trained_rows, write_trained_rows


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
    to: Literal["embedpipe", "diffusers"] = "embedpipe",
) -> Converted | ConvertedDiffusers:
    """Convert a prior to a folder of the form used here, or of diffusers. Nothing in it is run.

    checkpoint: of DALLE2-pytorch (0.16 and later); or a folder of diffusers, a pipeline's or its prior's (Karlo,
    Kandinsky 2, ECLIPSE); or a run of `train_prior` with adapters, which become one with the weights. out: None reads
    it and writes nothing. emb: a data set of its encoder; other calls then take `out` for a run of `train_prior`.
    text_tokens: it reads the states of the captions' tokens, too. to: "diffusers" writes an `unclip` prior, checkpoint
    being its folder, as diffusers loads it. The others: see `ConvertConfig`; they are for checkpoints of
    DALLE2-pytorch. Raises CheckpointError, ConfigError, OptionError; InputError where `emb` has embeddings of another
    width.
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
    if to == "diffusers" or Path(checkpoint).is_dir():
        if config != ConvertConfig():
            raise OptionError(
                f"{checkpoint}: a folder, and options that describe a checkpoint of DALLE2-pytorch", "Drop them"
            )
        if to == "diffusers":
            return _to_diffusers(checkpoint, out, emb)
        return _merged(checkpoint, out, emb) if _is_adapted(checkpoint) else _from_diffusers(checkpoint, out, emb)
    converted = convert_prior(checkpoint, config)
    encoder = None if emb is None else _encoder_record(emb, converted.prior.image_embed_dim)
    if out is not None:
        save_converted(converted, checkpoint, out)
        if encoder is not None:
            _write_converted_run(out, encoder, text_tokens)
    return converted


def _is_adapted(folder: str) -> bool:
    try:
        return read_kind(folder) == ADAPTED
    except CheckpointError:
        return False


def _merged(folder: str, out: str | None, emb: str | None) -> ConvertedDiffusers:
    """A run's prior with its adapters in its weights; `out` is of the same data and split as the run."""
    if emb is not None:
        raise OptionError(f"{folder}: its run says whose embeddings it is for", "Leave `emb` out")
    prior = load_prior(folder)
    assert isinstance(prior, UnclipPrior)
    if out is not None:
        _refuse_model(out, ("config.json",))
        facts = read_run_record(folder, PRIOR_RUN, "train-prior")
        prior.save(out)
        marks = read_trained_rows(folder)
        if marks is not None:
            write_trained_rows(out, marks)
        write_run_record(out, PRIOR_RUN, facts | {"merged": True})
    return ConvertedDiffusers(prior, ())


def _refuse_model(out: str, names: Sequence[str]) -> None:
    if any(files.exists(files.join(out, name)) for name in names):
        raise CheckpointError(f"{out}: holds a model already; name another folder")


def _from_diffusers(folder: str, out: str | None, emb: str | None) -> ConvertedDiffusers:
    found = read_diffusers_prior(folder)
    encoder = None if emb is None else _encoder_record(emb, found.prior.image_embed_dim)
    if out is not None:
        _refuse_model(out, ("config.json",))
        found.prior.save(out)
        if encoder is not None:
            _write_converted_run(out, encoder, found.prior.net.reads_tokens, prior="unclip")
    return found


def _to_diffusers(folder: str, out: str | None, emb: str | None) -> ConvertedDiffusers:
    if emb is not None:
        raise OptionError("`emb` says whose embeddings a prior of ours is for; diffusers keeps no such note", "Drop it")
    prior = load_prior(folder)
    if not isinstance(prior, UnclipPrior):
        raise ConfigError(f"{folder}: holds a {prior.KIND}; diffusers has a class for unclip priors only")
    if out is not None:
        _refuse_model(out, ("config.json", "prior", "model_index.json"))
        write_diffusers_prior(prior, out)
    return ConvertedDiffusers(prior, ())


def _encoder_record(emb: str, dim: int) -> EncoderCard:
    """The card of the encoder that made `emb`. Raises InputError if its embeddings are not `dim` wide."""
    card = EmbeddingDataset(emb).card
    if card.dim != dim:
        raise InputError(f"{emb}: embeddings of {card.dim} dimensions, but the prior is for {dim}", "Give another")
    return card


def _write_converted_run(out: str, encoder: EncoderCard, text_tokens: bool, prior: str = "diffusion") -> None:
    """Say of a prior trained elsewhere whose embeddings it is for, as a run of train-prior would."""
    facts = {
        "recipe": {"prior": prior, "text_tokens": text_tokens},
        "split": SplitConfig().facts(),
        "encoder": dataclasses.asdict(encoder),
        "fingerprint": encoder.fingerprint(),
        "converted": True,
    }
    write_run_record(out, PRIOR_RUN, facts)


callable_as(__name__, ":convert")
