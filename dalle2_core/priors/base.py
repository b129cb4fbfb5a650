"""The interface of priors: fit, loss, sample, save and load."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.errors import ConfigError
from dalle2_core.inputs import check_finite_number
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.rng import RNG
from dalle2_core.serialization import read_settings, read_weights, settings_of, write_model

P = TypeVar("P", bound="Prior")


class Prior(nn.Module):
    """Image embeddings for text embeddings.

    One that has a `loss` besides (a `dalle2_core.types.Trainable`) is trained after `fit`; the others are ready then.
    KIND: what config.json calls it. CONFIG: the dataclass of its own settings, all with defaults, which a recipe has
    under the prior's name; None for a prior without any.
    """

    KIND: ClassVar[str]
    CONFIG: ClassVar[type[Any] | None] = None

    @property
    def raw(self) -> bool:
        """Whether its embeddings are raw, as CLIP's projections give them, instead of norm 1."""
        return False

    @classmethod
    @abstractmethod
    def from_configs(cls: type[P], network: PriorNetworkConfig, config: Any) -> P:
        """A new prior, its weights drawn from torch's global generator.

        network: with both widths known; a prior without a transformer ignores it. config: a CONFIG.
        """

    @abstractmethod
    def fit(self: P, text_embed: Tensor, image_embed: Tensor) -> P:
        """Fit the parts in closed form to training rows [n, d]: statistics, principal components, a regression."""

    @abstractmethod
    def sample(
        self,
        text_embed: Tensor,
        *,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        cond_scale: float = 1.0,
        normalize: bool = True,
        generator: RNG = None,
    ) -> Tensor:
        """Predicted image embeddings [b, d], one for each text embedding [b, d].

        text_encodings, text_mask: [b, l, w] and [b, l], for a prior trained with text tokens. cond_scale: of guidance;
        1 is none. normalize: bring the result to norm 1. generator: of all draws, on the prior's device.
        Raises ShapeError if a width is not this prior's, ConfigError if it cannot be guided.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings in config.json, besides the kind, as plain JSON values."""

    def training_settings(self) -> dict[str, Any]:
        """The settings that the weights depend on; a prior leaves out those of sampling alone."""
        return {"kind": self.KIND, **self.settings()}

    @classmethod
    @abstractmethod
    def from_settings(cls: type[P], settings: Mapping[str, Any]) -> P:
        """A new prior from what `settings` returned. Raises KeyError, TypeError or ConfigError for others."""

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, each whole. Raises CheckpointError if the disk refuses."""
        write_model(folder, self.KIND, self.settings(), self.state_dict())

    @classmethod
    def load(cls: type[P], folder: Path | str, device: torch.device | str = "cpu") -> P:
        """Read what `save` wrote. Raises CheckpointError if it is not a whole prior of this kind and format."""
        settings = read_settings(folder, cls.KIND, f"{'an' if cls.KIND[0] in 'aeiou' else 'a'} {cls.KIND}")
        with settings_of(folder):
            prior = cls.from_settings(settings)
        prior.take_weights(folder)
        return prior.to(device)

    def take_weights(self, folder: Path | str) -> None:
        """Load the weights from a folder. Raises CheckpointError if they do not fit."""
        read_weights(folder, self)


def check_guidance(cond_scale: float, cond_drop_prob: float) -> None:
    """Raises ConfigError for guidance of a prior trained without dropped texts, or by what is no finite number."""
    check_finite_number(cond_scale, "cond_scale")
    if cond_scale != 1.0 and cond_drop_prob == 0:
        raise ConfigError(
            f"cond_scale {cond_scale} needs a prior trained with cond_drop_prob above 0; this one was not"
        )


def check_candidates(num_samples_per_batch: int) -> None:
    """Raises ConfigError below one."""
    if num_samples_per_batch < 1:
        raise ConfigError(f"num_samples_per_batch is {num_samples_per_batch}; it must be 1 or more")


def nearest_to_text(text_embed: Tensor, candidates: Tensor) -> Tensor:
    """Of n candidates for each text, [b * n, d], the one whose direction is nearest to the text embedding: [b, d]."""
    candidates = candidates.view(len(text_embed), -1, text_embed.shape[1])
    likeness = (F.normalize(candidates, dim=-1) * text_embed[:, None]).sum(dim=-1)
    best = likeness.argmax(dim=1)[:, None, None].expand(-1, 1, text_embed.shape[1])
    return candidates.gather(1, best).squeeze(1)
