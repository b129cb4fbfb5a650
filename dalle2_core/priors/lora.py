"""Low-rank adapters for priors of diffusers: W + (alpha / rank) B A, with A and B trained. Hu et al. 2106.09685.

peft puts them into the network for training. What is saved is small: A, B, the scaling and the empty text, and where
the prior that they belong to lies. `load_adapted` adds them to its weights, for which peft is not needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_tensors, sha256
from dalle2_core.keywords import chosen, from_keywords
from dalle2_core.modules import varying_state
from dalle2_core.priors.diffusers_folder import is_diffusers_prior, read_diffusers_prior
from dalle2_core.priors.registry import ADAPTED, load_prior
from dalle2_core.priors.unclip import NULL_TEXT, UnclipConfig, UnclipPrior
from dalle2_core.serialization import read_settings, settings_of, write_model

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_LAYERS = {"attention": _ATTENTION, "all": (*_ATTENTION, "ff.net.0.proj", "ff.net.2")}
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Adapters that are trained in place of a prior's weights.

    rank: of each; 0 trains the weights themselves. alpha: an adapter counts alpha / rank; None takes the rank.
    dropout: of an adapter's input. layers: of every block the "attention", or "all" with its feed-forward layers.
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    layers: Literal["attention", "all"] = "attention"

    def __post_init__(self) -> None:
        chosen(_LAYERS, self.layers, "lora.layers")
        if self.rank < 0:
            raise ConfigError(f"lora.rank is {self.rank}; it must be 1 or more, or 0 for no adapters")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"lora.alpha is {self.alpha}; it must be above 0, or None for the rank")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def adapt(prior: UnclipPrior, config: LoraConfig) -> None:
    """Put adapters into the blocks of a trained prior; nothing but them is trained from now on. B begins with zeros.

    Raises ConfigError where peft is missing.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as problem:
        raise ConfigError(f"LoRA needs the package peft (pip install 'embedpipe[lora]'): {problem}") from problem
    prior.requires_grad_(False)
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=cast("Any", config.rank * config.scale),  # which it divides by the rank; any number will do
            lora_dropout=config.dropout,
            target_modules=list(_LAYERS[config.layers]),
        ),
        prior.net,
    )
    # What is scaled by is not trained, and yet a run's own where it was fitted to its data.
    own = {f"net.{name}" for name in ("clip_mean", "clip_std")}
    prior.unchanged = frozenset(
        name for name, it in prior.named_parameters() if not it.requires_grad and name not in own
    )


def save_adapted(prior: UnclipPrior, config: LoraConfig, folder: Path | str, base: Path | str) -> None:
    """Write config.json and model.safetensors of an adapted prior, without the weights of `base`, a prior's folder.

    Raises CheckpointError if the disk refuses.
    """
    base, folder = Path(base).resolve(), Path(folder).resolve()
    where = {"folder": str(base), "from_here": os.path.relpath(base, folder), "sha256": base_digest(base)}
    settings = {"base": where, "lora": asdict(config), "unclip": asdict(prior.config)}
    write_model(folder, ADAPTED, settings, varying_state(prior))


def load_adapted(folder: Path | str, device: torch.device | str = "cpu") -> UnclipPrior:
    """The prior that `save_adapted` was given, its adapters added to the weights of the one it belongs to, in float32.

    Raises CheckpointError where that one is gone or has changed, or a file is damaged.
    """
    folder = Path(folder)
    settings = read_settings(folder, ADAPTED, "an adapted prior")
    with settings_of(folder):
        config = from_keywords(LoraConfig, "lora", settings["lora"])
        own = from_keywords(UnclipConfig, "unclip", settings["unclip"])
        told = settings["base"]
        places = [Path(str(told["folder"])), folder / str(told["from_here"])]
        digest = str(told["sha256"])
    prior = _base(folder, places, digest)
    prior.config = own
    tensors = read_tensors(folder / "model.safetensors")
    for name in NULL_TEXT:
        setattr(prior, name, tensors.pop(name, None))
    _add(folder, prior, tensors, config.scale)
    return prior.to(device)


def base_digest(folder: Path) -> str:
    """Of the files with the settings and weights of a prior, ours or a folder of diffusers."""
    digest = hashlib.sha256()
    # Beside these lie a run's checkpoints, and the other models of a pipeline.
    parts = ("", "prior", "scheduler", "prior_scheduler") if is_diffusers_prior(folder) else ("",)
    for path in sorted(it for part in parts for it in (folder / part).glob("*")):
        if path.name in ("config.json", "scheduler_config.json") or path.suffix == ".safetensors":
            digest.update(sha256(path).encode())
    return digest.hexdigest()


def _base(folder: Path, places: list[Path], digest: str) -> UnclipPrior:
    for place in places:
        if place.is_dir() and base_digest(place) == digest:
            found = read_diffusers_prior(place).prior if is_diffusers_prior(place) else load_prior(place)
            if not isinstance(found, UnclipPrior):
                break
            return found.float()
    what = "has changed" if any(it.is_dir() for it in places) else "is gone"
    raise CheckpointError(
        f"{folder}: holds adapters for the prior in {places[0]}, which {what} since. Put it back; to do without it, "
        "merge both while it is there (embedpipe.convert)"
    )


@torch.no_grad()
def _add(folder: Path, prior: UnclipPrior, tensors: Mapping[str, Tensor], scale: float) -> None:
    weights = dict(prior.named_parameters())
    plain = {name: it for name, it in tensors.items() if not name.endswith((_A, _B))}
    pairs = {name.removesuffix(_A): it for name, it in tensors.items() if name.endswith(_A)}
    try:
        for name, it in plain.items():
            weights[name].copy_(it)
        for name, a in pairs.items():
            weights[f"{name}.weight"].add_(scale * (tensors[name + _B].float() @ a.float()))
    except (KeyError, RuntimeError) as problem:
        raise CheckpointError(f"{folder}: its adapters do not fit the prior they name ({problem})") from problem
