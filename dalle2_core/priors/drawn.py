"""Image embeddings that a prior draws for texts, in pieces that fit the memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.chunking import OnSmaller, run_in_chunks
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.generation import GenerationConfig
from dalle2_core.priors.base import Prior
from dalle2_core.rng import PerSampleRNG, derived_seed
from dalle2_core.types import EmbeddedText


def drawn_embeds(
    prior: Prior,
    text: EmbeddedText,
    config: GenerationConfig,
    seed: int,
    candidates: int | None = None,
    normalize: bool = True,
    on_rows: Callable[[int, int], None] | None = None,
    on_smaller_batch: OnSmaller | None = None,
) -> Tensor:
    """Image embeddings [n, d] for n texts; what is drawn for one depends on the seed and its place alone.

    candidates: where the config says none. normalize: bring them to norm 1, see `Prior.sample`. on_rows: hears how many
    of how many are done. Raises ConfigError for what such a prior does not have, ShapeError for NaN or infinity.
    """
    keywords = _keywords(prior, config, candidates)
    device = _device_of(prior)
    rows = len(text.text_embed)

    def make(start: int, stop: int) -> Tensor:
        draws = PerSampleRNG(derived_seed(seed, "prior"), start, stop - start, device)
        told = text.part(start, stop).to(device)
        made = prior.sample(
            told.text_embed,
            text_encodings=told.text_encodings,
            text_mask=told.text_mask,
            normalize=normalize,
            **keywords,
            generator=draws,
        )
        if on_rows is not None:
            on_rows(stop, rows)
        return made

    check_finite_rows(text.text_embed, "text embeddings hold", 1)
    made = run_in_chunks(rows, config.max_batch_size, make, on_smaller_batch)
    check_finite_rows(made, "the prior gave", config.num_images * config.best_of)
    return made


def check_finite_rows(rows: Tensor, who: str, times: int) -> None:
    """Raises ShapeError that says which texts are concerned; each has `times` rows."""
    bad = (~torch.isfinite(rows).flatten(1).all(dim=1)).nonzero().flatten() // times
    if len(bad):
        places = ", ".join(map(str, sorted(set(bad.tolist()))[:10]))
        raise ShapeError(f"{who} NaN or infinity for text {places} (counted from 0); look at the weights and the text")


def _keywords(prior: Prior, config: GenerationConfig, candidates: int | None) -> dict[str, Any]:
    """What is handed to the prior. Raises ConfigError for what one of its kind does not have."""
    wanted = {
        "steps": ("prior_steps", config.prior_steps),
        "sampler": ("prior_sampler", config.prior_sampler),
        "num_samples_per_batch": (
            "prior_num_samples",
            candidates if config.prior_num_samples is None else config.prior_num_samples,
        ),
    }
    takes = inspect.signature(prior.sample).parameters
    given = {name: value for name, (_, value) in wanted.items() if value is not None}
    for name in given:
        if name not in takes:
            raise ConfigError(f"a {prior.KIND} has no {wanted[name][0]}; leave it out")
    return given | {"cond_scale": config.prior_cond_scale}


def _device_of(module: nn.Module) -> torch.device:
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
