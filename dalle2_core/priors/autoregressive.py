"""The autoregressive prior: text embedding → codes, one after the other → image embedding.

Ramesh et al. 2204.06125, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.diffusion.guidance import branches, combined
from dalle2_core.errors import ConfigError
from dalle2_core.inputs import checked_embeddings, checked_token_states, dtype_of
from dalle2_core.keywords import from_keywords
from dalle2_core.modules import PreciseBuffers, evaluating
from dalle2_core.networks.autoregressive_prior import AutoregressiveNetwork
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.priors.base import Prior, check_candidates, check_guidance, nearest_to_text
from dalle2_core.priors.pca_codes import PCAQuantizer
from dalle2_core.priors.standardize import Standardizer
from dalle2_core.rng import RNG, integers, uniform
from dalle2_core.types import PriorBatch, StepLoss, TextCondition


@dataclass(frozen=True, slots=True)
class AutoregressiveConfig:
    """Quantization of image embeddings, and sampling of the codes.

    codes: principal components kept (the paper: 319 of 1024). buckets: values of a code (the paper: 1024).
    likeness_buckets: values of the token that says how near image and text are; it is drawn from the upper half.
    cond_drop_prob: share of rows trained without their text, for guidance.
    temperature: of drawing a code; below 1 prefers the likely ones.
    """

    codes: int = 64
    buckets: int = 256
    likeness_buckets: int = 16
    cond_drop_prob: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("codes", 1), ("buckets", 2), ("likeness_buckets", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"autoregressive.{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.cond_drop_prob < 1:
            raise ConfigError(f"cond_drop_prob is {self.cond_drop_prob}; it must be in [0, 1)")
        if self.temperature <= 0:
            raise ConfigError(f"autoregressive.temperature is {self.temperature}; it must be above 0")


class AutoregressivePrior(PreciseBuffers, Prior):
    """Trains on pairs of embeddings after `fit` has found the components and buckets of the images."""

    KIND = "autoregressive-prior"
    CONFIG = AutoregressiveConfig
    likeness_edges: Tensor

    def __init__(self, network: PriorNetworkConfig, config: AutoregressiveConfig) -> None:
        """network: with both widths known. Weights are drawn from torch's global generator."""
        super().__init__()
        dim = network.embed_dim
        assert dim is not None
        self.config = config
        self.image_embed_dim = dim
        self.quantizer = PCAQuantizer(dim, min(config.codes, dim), config.buckets)
        self.text_scaling = Standardizer(dim, dim**0.5)
        self.net = AutoregressiveNetwork(network, min(config.codes, dim), config.buckets, config.likeness_buckets)
        # Between buckets that equally many training rows fall into, so that the upper half is the upper half of rows.
        self.register_buffer("likeness_edges", torch.linspace(-1, 1, config.likeness_buckets + 1)[1:-1].clone())

    @classmethod
    def from_configs(cls, network: PriorNetworkConfig, config: AutoregressiveConfig) -> AutoregressivePrior:
        """See `Prior`."""
        return cls(network, config)

    def fit(self, text_embed: Tensor, image_embed: Tensor) -> AutoregressivePrior:
        """Components and buckets of the images, scale of the texts, and the likeness of pairs."""
        self.quantizer.fit(image_embed)
        self.text_scaling.fit(text_embed)
        likeness = _likeness(text_embed, image_embed)
        shares = torch.linspace(0, 1, self.config.likeness_buckets + 1, dtype=likeness.dtype)[1:-1]
        self.likeness_edges.copy_(_quantiles(likeness, shares))
        return self

    def loss(self, batch: PriorBatch, draws: RNG) -> StepLoss:
        """Mean cross-entropy of the codes, in nats; dropped texts are drawn from `draws`."""
        keep = None
        if self.config.cond_drop_prob > 0:
            keep = uniform((len(batch),), draws, batch.text_embed.device) >= self.config.cond_drop_prob
        codes = self.quantizer.encode(batch.image_embed)
        likeness = torch.bucketize(_likeness(batch.text_embed, batch.image_embed), self.likeness_edges)
        text = self._condition(batch.text_embed, batch.text_tokens, batch.text_mask, keep)
        logits = self.net(codes, likeness, text)
        return StepLoss(F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten()))

    @torch.no_grad()
    def sample(
        self,
        text_embed: Tensor,
        *,
        text_encodings: Tensor | None = None,
        text_mask: Tensor | None = None,
        num_samples_per_batch: int = 2,
        cond_scale: float = 1.0,
        normalize: bool = True,
        generator: RNG = None,
    ) -> Tensor:
        """Predicted image embeddings [b, d].

        num_samples_per_batch: candidates for each text, of which the nearest to it is kept. cond_scale: of guidance on
        the logits. Raises ShapeError if a width is not this prior's, ConfigError if it cannot be guided.
        """
        text_embed = checked_embeddings(text_embed, self.image_embed_dim, "text_embed", self)
        text_encodings, text_mask = checked_token_states(text_encodings, text_mask, len(text_embed), self)
        check_candidates(num_samples_per_batch)
        check_guidance(cond_scale, self.config.cond_drop_prob)
        rows, device = len(text_embed) * num_samples_per_batch, text_embed.device
        text = self._condition(text_embed, text_encodings, text_mask).repeated(num_samples_per_batch)
        half = self.config.likeness_buckets // 2
        likeness = integers(half, self.config.likeness_buckets, (rows,), generator, device)
        text, weights = branches((text, text.unconditional()), (cond_scale,))
        times = len(weights)

        def choose(logits: Tensor) -> Tensor:
            chances = (combined(logits, weights).float() / self.config.temperature).softmax(dim=-1).cumsum(dim=-1)
            drawn = torch.searchsorted(chances, uniform((rows,), generator, device)[:, None]).squeeze(1)
            drawn = drawn.clamp(max=self.config.buckets - 1)  # the sum of all chances may round to less than 1
            return drawn.repeat(times)

        with evaluating(self):
            codes = self.net.generate(likeness.repeat(times), text, choose)[:rows]
        candidates = self.quantizer.decode(codes)
        return nearest_to_text(text_embed, F.normalize(candidates, dim=-1) if normalize else candidates)

    def _condition(
        self, embed: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: Tensor | None = None
    ) -> TextCondition:
        return TextCondition.of(self.text_scaling(embed), tokens, mask, keep).trimmed().in_dtype(dtype_of(self.net))

    def settings(self) -> dict[str, Any]:
        """The configs of the network and of the prior."""
        return {"network": asdict(self.net.config), "autoregressive": asdict(self.config)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> AutoregressivePrior:
        """See `Prior`."""
        network = from_keywords(PriorNetworkConfig, "network", settings["network"])
        return cls(network, from_keywords(AutoregressiveConfig, "autoregressive", settings["autoregressive"]))


def _likeness(text: Tensor, image: Tensor) -> Tensor:
    """Dot products of the pairs' directions, [b]."""
    return (F.normalize(text, dim=-1) * F.normalize(image, dim=-1)).sum(dim=-1)


def _quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """As torch.quantile, which takes no more than 16 million values."""
    ordered = values.sort().values
    return ordered[(shares * (len(ordered) - 1)).round().long()]
