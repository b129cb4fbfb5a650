"""What a stage makes of held-out rows, to look at and to score; it needs no other stage."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from dalle2_core.chunking import run_in_chunks
from dalle2_core.conditioning import DecoderBatch, DecoderCondition
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.decoder.stage_sampler import StageSampler, StageSamplingConfig
from dalle2_core.images import as_floats, resized
from dalle2_core.rng import PerSampleRNG, derived_seed


def true_images(stage: DecoderStage, batch: DecoderBatch) -> Tensor:
    """The batch's images at the stage's size: [b, c, s, s] in [0, 1]."""
    return resized(as_floats(batch.images), stage.config.image_size)


def smaller_images(stage: DecoderStage, batch: DecoderBatch) -> Tensor | None:
    """What an upsampler starts from, made of the true images: [b, c, l, l] in [0, 1]; None for a first stage."""
    lowres = stage.config.lowres
    return None if lowres is None else resized(as_floats(batch.images), lowres.size)


def check_stage_guidance(stage: DecoderStage, cond_scale: float) -> None:
    """Raises ConfigError if the stage will not have been trained for guidance of that scale."""
    StageSampler(stage, StageSamplingConfig(cond_scale=cond_scale))


@torch.no_grad()
def stage_samples(
    stage: DecoderStage,
    batches: Iterable[DecoderBatch],
    *,
    seed: int = 0,
    cond_scale: float = 1.0,
    max_batch_size: int | None = None,
) -> Tensor:
    """Images [n, c, s, s] in [0, 1] that the stage makes of what these rows say, on the CPU.

    An upsampler starts from the true images made small, so that only its own mistakes are seen. What is drawn for a row
    depends on the seed and its place among all rows. max_batch_size: rows computed at once, half as
    many from where memory runs out. Raises ConfigError for a
    guidance that the stage was not trained for.
    """
    sampler = StageSampler(stage, StageSamplingConfig(cond_scale=cond_scale))
    made, done = [], 0
    for batch in batches:
        sampled = functools.partial(_sampled, stage, sampler, batch, derived_seed(seed, "stage samples"), done)
        made.append(run_in_chunks(len(batch), max_batch_size, sampled))
        done += len(batch)
    return torch.cat(made)


def _sampled(
    stage: DecoderStage, sampler: StageSampler, batch: DecoderBatch, seed: int, before: int, start: int, stop: int
) -> Tensor:
    """Images of some rows of a batch, before which there were so many."""
    part = batch.part(start, stop).to(stage.device)
    draws = PerSampleRNG(seed, before + start, len(part), stage.device)
    given = DecoderCondition.of(part.image_embed, part.text_tokens, part.text_mask)
    condition = stage.condition_for(given, smaller_images(stage, part), draws)
    return sampler.sample(condition, draws, len(part), start=None, known=None).cpu()
