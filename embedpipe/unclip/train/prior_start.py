"""Where a prior's training begins: random weights, another run's, or those of a prior of diffusers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dalle2_core.presets.prior import PriorRecipe
from dalle2_core.priors.base import Prior
from dalle2_core.priors.config import OF_SAMPLING
from dalle2_core.priors.diffusers_folder import read_diffusers_prior
from dalle2_core.priors.lora import adapt, base_digest, save_adapted
from dalle2_core.priors.registry import ADAPTED, PRIORS, load_prior
from dalle2_core.priors.unclip import UnclipPrior, check_objective
from dalle2_core.serialization import read_kind
from dalle2_core.training import Processes
from dalle2_core.training.checkpoint import newest_weights
from dalle2_core.types import EmbeddedText
from embedpipe.errors import InputError, ModelError, OptionError, RunMismatch
from embedpipe.load import EmbeddingDataset
from embedpipe.mirror import local_copy

from ..data.empty_text import empty_text_of, encoder_of_data, lacks_empty_text

logger = logging.getLogger("embedpipe")

DIFFUSERS = "diffusers:"
# Settings of a prior that its weights go on with: of what is learnt from now on, and of sampling.
_MAY_CHANGE = OF_SAMPLING | {
    "clip_sample_range",
    "cond_drop_prob",
    "contrastive_temperature",
    "contrastive_weight",
    "loss_type",
    "loss_weighting",
    "temperature",
}


@dataclass(frozen=True, slots=True)
class PriorStart:
    """A trained prior whose weights a training begins with.

    place: a run's folder, or `diffusers:FOLDER`. changes: settings that it goes on with in place of its own.
    """

    place: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """On this machine."""
        return Path(local_copy(self.place.removeprefix(DIFFUSERS)))

    @property
    def kind(self) -> str:
        """Its name among PRIORS. Raises CheckpointError for a folder without a prior."""
        if self.place.startswith(DIFFUSERS):
            return "unclip"
        found = read_kind(self.folder)
        if found == ADAPTED:
            return "unclip"
        return next((name for name in PRIORS if found == PRIORS[name].KIND), found)

    def load(self) -> Prior:
        """The prior, in float32. Raises CheckpointError if it is not whole."""
        of_diffusers = self.place.startswith(DIFFUSERS)
        prior: Any = read_diffusers_prior(self.folder).prior if of_diffusers else load_prior(self.folder)
        if self.changes:
            prior.config = replace(prior.config, **self.changes)
            if isinstance(prior, UnclipPrior):
                check_objective(prior.net.config, prior.config)
        loaded: Prior = prior.float()
        return loaded

    def facts(self) -> dict[str, Any]:
        """What run.json says of it: the place, and a digest of the files with its settings and weights."""
        return {"place": self.place, "sha256": base_digest(self.folder)}


def started(
    recipe: PriorRecipe, given: str | None, start: PriorStart, settings: Iterable[str]
) -> tuple[PriorRecipe, PriorStart]:
    """The recipe of a training that begins with `start`, and that with what of the recipe it goes on with.

    given: the kind of prior that was asked for, or None. settings: dotted names of those that were. Raises OptionError
    for another kind than that, one that is not trained by steps, or a setting that trained weights do not go with.
    """
    kind = start.kind
    if given not in (None, kind):
        raise OptionError(f"{start.place}: holds a prior of the kind {kind}, not {given}", "Leave `prior` out")
    if kind not in PRIORS or not hasattr(PRIORS[kind], "loss"):
        raise OptionError(f"{start.place}: a prior of the kind {kind} is not trained by steps", "Begin anew")
    if recipe.lora.rank and kind != "unclip":
        raise OptionError(f"{start.place}: adapters are for unclip priors, not for {kind}", "Give `lora=0`")
    prior = start.load()
    changes = _changes(recipe, kind, prior, start, settings)
    return (
        replace(recipe, prior=kind, text_tokens=reads_tokens(prior) or (recipe.text_tokens and kind != "unclip")),
        replace(start, changes=changes),
    )


def _changes(
    recipe: PriorRecipe, kind: str, prior: Prior, start: PriorStart, settings: Iterable[str]
) -> dict[str, Any]:
    found = {}
    for full in settings:
        section, _, name = full.partition(".")
        theirs = prior.settings().get(section, {}) if section in ("network", kind) else {}
        if name not in theirs or theirs[name] == (value := getattr(getattr(recipe, section), name)):
            continue
        if section != kind or name not in _MAY_CHANGE:
            raise OptionError(
                f"{start.place}: its {full} is {theirs[name]!r}, which trained weights do not go without",
                f"Leave `{full}` out, or begin anew",
            )
        found[name] = value
    return found


def build(start: PriorStart | None, recipe: PriorRecipe, dim: int, pairs: Callable[[], tuple[Any, Any]]) -> Prior:
    """A new prior for embeddings of `dim`, fitted to `pairs`, or the one that a training begins with, perhaps adapted.

    The scaling of a trained one stays.
    """
    prior: Prior = recipe.build(dim) if start is None else start.load()
    if start is None or isinstance(prior, UnclipPrior):
        # One of diffusers that was never trained has no scaling yet; of others this leaves it as it is.
        prior = prior.fit(*pairs())
    if recipe.lora.rank and isinstance(prior, UnclipPrior):
        adapt(prior, recipe.lora)
    return prior


def save(prior: Prior, start: PriorStart | None, recipe: PriorRecipe, folder: str) -> None:
    """Write a trained prior, or the adapters of one. Raises CheckpointError if the disk refuses."""
    if recipe.lora.rank and start is not None and isinstance(prior, UnclipPrior):
        save_adapted(prior, recipe.lora, folder, start.folder)
    else:
        prior.save(folder)


def learn_empty_text(prior: Prior, folder: str, dataset: EmbeddingDataset, together: Processes) -> None:
    """Tell a prior in whose training texts are dropped the empty one, by the encoder of its data set.

    A run in `folder` that has checkpoints goes on with what they say. Where the encoder is not to be had no text is
    dropped, and that is said. Every process calls it.
    """
    if not isinstance(prior, UnclipPrior) or prior.config.cond_drop_prob == 0 or not lacks_empty_text(prior):
        return
    found = _empty_text(prior, folder, dataset) if together.is_first else None
    told = together.gather(found)[0]
    if told is not None:
        prior.set_null_text(told)


def _empty_text(prior: UnclipPrior, folder: str, dataset: EmbeddingDataset) -> EmbeddedText | None:
    begun = newest_weights(Path(folder) / "checkpoints")
    if begun is not None:
        embed, tokens = (begun.get(name) for name in ("null_text_embed", "null_text_tokens"))
        mask = None if tokens is None else torch.ones(tokens.shape[:2], dtype=torch.bool)
        return None if embed is None else EmbeddedText(embed, tokens, mask)
    try:
        return empty_text_of(prior, encoder_of_data(dataset))
    except (ModelError, InputError, RunMismatch) as problem:
        logger.warning(
            "%s: no text is dropped in this training, as the encoder that would embed the empty text is not to be had "
            "(%s). Guidance goes on as the prior has learnt it",
            dataset.path,
            problem,
        )
        return None


def reads_tokens(prior: Prior) -> bool:
    """Whether its network cannot do without the states of a text's tokens."""
    return bool(getattr(getattr(prior, "net", None), "reads_tokens", False))


def refuse_another_width(prior: Prior, start: PriorStart, emb: str, dim: int) -> None:
    """Raise InputError where a prior is for embeddings of another width than those of `emb`."""
    width = getattr(prior, "image_embed_dim", dim)
    if width != dim:
        raise InputError(
            f"{start.place}: for embeddings of {width} values, and {emb} has {dim}",
            "Give a prior for the encoder of these embeddings",
        )
