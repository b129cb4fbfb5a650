"""A small prior without diffusion: one pass from text to image embedding. ECLIPSE, Patel et al. 2312.04655."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.errors import ConfigError
from dalle2_core.inputs import checked_embeddings, checked_token_states, dtype_of
from dalle2_core.keywords import from_keywords
from dalle2_core.modules import evaluating
from dalle2_core.networks.causal_transformer import CausalTransformer, PriorNetworkConfig, TextConditioned
from dalle2_core.priors.base import Prior
from dalle2_core.priors.standardize import Standardizer
from dalle2_core.rng import RNG
from dalle2_core.types import PriorBatch, StepLoss, TextCondition


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """The two losses: squared error to the image, and which text of the batch a prediction belongs to.

    contrastive_weight: of the second (the paper: 0.2). contrastive_temperature: divides its cosines (CLIP's is 0.01).
    """

    contrastive_weight: float = 0.2
    contrastive_temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.contrastive_weight < 0:
            raise ConfigError(f"contrastive_weight is {self.contrastive_weight}; it must be 0 or more")
        if self.contrastive_temperature <= 0:
            raise ConfigError(f"contrastive_temperature is {self.contrastive_temperature}; it must be above 0")


class ContrastiveNetwork(TextConditioned):
    """[text tokens?, text embedding, learned query] → an image embedding, read off the query."""

    def __init__(self, config: PriorNetworkConfig) -> None:
        """config: with both widths known."""
        dim = config.dim
        assert dim is not None
        super().__init__(dim, config)
        self.null_text_embeds.requires_grad_(False)  # no text is ever dropped
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.causal_transformer = CausalTransformer(dim, self.embed_dim, config)

    def forward(self, text: TextCondition) -> Tensor:
        """[b, embed_dim]."""
        query = self.learned_query.expand(len(text.embed), 1, -1)
        out: Tensor = self.causal_transformer(self.text(text).then(query))
        return out.squeeze(1)


class ContrastivePrior(Prior):
    """Trains on pairs of embeddings; predicts without drawing anything."""

    KIND = "contrastive-prior"
    CONFIG = ContrastiveConfig
    compares_rows = True  # the other texts of a batch are wrong answers

    def __init__(self, network: PriorNetworkConfig, config: ContrastiveConfig) -> None:
        """network: with both widths known. Weights are drawn from torch's global generator."""
        super().__init__()
        width = network.embed_dim
        assert width is not None
        self.config = config
        self.image_embed_dim = width
        self.net = ContrastiveNetwork(network)
        self.text_scaling = Standardizer(width, width**0.5)
        self.image_scaling = Standardizer(width, width**0.5)

    @classmethod
    def from_configs(cls, network: PriorNetworkConfig, config: ContrastiveConfig) -> ContrastivePrior:
        """See `Prior`."""
        return cls(network, config)

    def fit(self, text_embed: Tensor, image_embed: Tensor) -> ContrastivePrior:
        """Mean and variance of each dimension."""
        self.text_scaling.fit(text_embed)
        self.image_scaling.fit(image_embed)
        return self

    def loss(self, batch: PriorBatch, draws: RNG) -> StepLoss:
        """Squared error in scaled embeddings, and the weighted contrastive loss. 2312.04655, equations 4 to 6."""
        predicted = self._predict(batch.text_embed, batch.text_tokens, batch.text_mask).float()
        squared = F.mse_loss(self.image_scaling(predicted), self.image_scaling(batch.image_embed))
        cosines = F.normalize(predicted, dim=-1) @ F.normalize(batch.text_embed.float(), dim=-1).T
        own = torch.arange(len(batch), device=cosines.device)
        contrast = F.cross_entropy(cosines / self.config.contrastive_temperature, own)
        metrics = {"squared_error": squared.detach(), "contrast": contrast.detach()}
        return StepLoss(squared + self.config.contrastive_weight * contrast, metrics)

    def _predict(self, embed: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        text = TextCondition.of(self.text_scaling(embed), tokens, mask).trimmed()
        scaled = self.net(text.in_dtype(dtype_of(self.net)))
        unscaled: Tensor = self.image_scaling.inverse(scaled)
        return unscaled

    @torch.no_grad()
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
        """Predicted image embeddings [b, d]. Nothing is drawn, and it cannot be guided (ConfigError)."""
        text_embed = checked_embeddings(text_embed, self.image_embed_dim, "text_embed", self)
        text_encodings, text_mask = checked_token_states(text_encodings, text_mask, len(text_embed), self)
        if cond_scale != 1.0:
            raise ConfigError(f"cond_scale is {cond_scale}, but a prior without dropped texts cannot be guided")
        with evaluating(self):
            predicted = self._predict(text_embed, text_encodings, text_mask)
        return F.normalize(predicted, dim=-1) if normalize else predicted

    def settings(self) -> dict[str, Any]:
        """The configs of the network and of the prior."""
        return {"network": asdict(self.net.config), "contrastive": asdict(self.config)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ContrastivePrior:
        """See `Prior`."""
        network = from_keywords(PriorNetworkConfig, "network", settings["network"])
        return cls(network, from_keywords(ContrastiveConfig, "contrastive", settings["contrastive"]))
