"""Configs that DALLE2-pytorch publishes: `train_prior_config.json` as a prior and a trainer's keywords."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle2_core.errors import ConfigError
from dalle2_core.files import read_json
from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
from dalle2_core.priors.diffusion import DiffusionPrior
from dalle2_core.types import ClipEncoders

logger = logging.getLogger(__name__)

_OF_TRAINER = ("lr", "wd", "eps", "max_grad_norm", "use_ema", "ema_beta", "warmup_steps", "cosine_decay_max_steps")
# What the network of DALLE2-pytorch swallowed without a word, and what None stood for its default in.
_DEFAULT_IF_NONE = ("max_text_len",)


@dataclass(frozen=True, slots=True)
class PublishedPrior:
    """A new prior with random weights, and the keywords of `DiffusionPriorTrainer` for it.

    ignored: the settings that say nothing here (the clip's, the data's, the tracker's), as dotted names.
    """

    prior: DiffusionPrior
    trainer: dict[str, Any]
    ignored: tuple[str, ...]


def read_prior_config(path: Path | str, clip: ClipEncoders | None = None) -> PublishedPrior:
    """Read a training config of DALLE2-pytorch's prior.

    clip: embeds texts and images on the fly; the config names one, which is not loaded. What the config says of data,
    clip and tracker is left out and said once. Raises CheckpointError if it is no JSON, ConfigError if it has no
    `prior`, TypeError for a setting of the prior that is not known.
    """
    content = read_json(Path(path))
    sections = content if isinstance(content, Mapping) else {}
    settings = sections.get("prior", sections)
    if not isinstance(settings, Mapping) or not isinstance(settings.get("net"), Mapping):
        raise ConfigError(f"{path}: no config of a prior; it has no `prior` with a `net`")
    network = {
        name: value for name, value in settings["net"].items() if not (value is None and name in _DEFAULT_IF_NONE)
    }
    rest = {name: value for name, value in settings.items() if name not in ("net", "clip")}
    train = sections.get("train", {}) if "prior" in sections else {}
    trainer = {name: value for name, value in train.items() if name in _OF_TRAINER}
    if train.get("amp"):
        trainer["precision"] = "bfloat16"
    ignored = [f"train.{name}" for name in train if name not in (*_OF_TRAINER, "amp")]
    ignored += [name for name in sections if name not in ("prior", "train")] if "prior" in sections else []
    ignored += ["prior.clip"] if settings.get("clip") else []
    if ignored:
        logger.warning("%s: not used here: %s", path, ", ".join(sorted(ignored)))
    return PublishedPrior(DiffusionPrior(DiffusionPriorNetwork(**network), clip=clip, **rest), trainer, tuple(ignored))
