"""The diffusion prior's network: a causal transformer over a handful of tokens. It knows nothing of diffusion.

Sequence: [text tokens?, text embedding, time, image embedding, (self-condition), learned query]; the output is read
off the query. Ramesh et al. 2204.06125, section 2.2. Without text tokens that is four or five tokens: there is
no padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.keywords import from_keywords
from dalle2_core.networks.causal_transformer import (
    CausalTransformer,
    Memory,
    PriorNetworkConfig,
    TextConditioned,
    to_tokens,
)
from dalle2_core.networks.layers import MLP, SinusoidalTime
from dalle2_core.types import TextCondition


class DiffusionPriorNetwork(TextConditioned):
    """(noised image embedding, time, text) → a tensor of the image embedding's shape."""

    def __init__(self, dim: int, **keywords: Any) -> None:
        """Keywords: the fields of PriorNetworkConfig. An unknown one is a TypeError that names the near ones."""
        config = from_keywords(PriorNetworkConfig, "DiffusionPriorNetwork", {"dim": dim, **keywords})
        config = config.for_embeddings(config.embed_dim or dim)
        super().__init__(dim, config)
        self.to_image_embeds = nn.Sequential(to_tokens(self.embed_dim, dim, config.num_image_embeds))
        self.to_self_cond = to_tokens(self.embed_dim, dim, 1) if config.self_cond else None
        tokens = dim * config.num_time_embeds
        self.to_time_embeds = nn.Sequential(
            nn.Sequential(SinusoidalTime(dim, config.truncated_time), MLP(dim, tokens))
            if config.num_timesteps is None
            else nn.Embedding(config.num_timesteps, tokens)
        )
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.causal_transformer = CausalTransformer(dim, self.embed_dim, config)

    @classmethod
    def from_config(cls, config: PriorNetworkConfig) -> DiffusionPriorNetwork:
        """The network of a config whose `dim` is known."""
        if config.dim is None:
            raise ConfigError("network.dim is not known yet; use config.for_embeddings(width) first")
        return cls(**{name: getattr(config, name) for name in config.__dataclass_fields__})

    def read(self, text: TextCondition) -> Memory:
        """What `forward` needs of these texts, which come first and see nothing else: it can be used again and again.

        Raises ShapeError if a width is not this network's.
        """
        return self.causal_transformer.go_on(self.text(text), None, 1)[1]

    def forward(
        self,
        image_embed: Tensor,
        diffusion_timesteps: Tensor,
        text: TextCondition | Memory | None = None,
        self_cond: Tensor | None = None,
        *,
        text_embed: Tensor | None = None,
        text_encodings: Tensor | None = None,
        text_cond_drop_prob: float = 0.0,
    ) -> Tensor:
        """[b, embed_dim]. image_embed: [b, embed_dim]. diffusion_timesteps: [b] integer. self_cond: [b, embed_dim].

        text: itself, or what `read` made of it; or, as DALLE2-pytorch has it, text_embed [b, embed_dim] and
        text_encodings [b, l, w], of which each row is dropped with the probability text_cond_drop_prob. Raises
        ShapeError if a width is not this network's.
        """
        time = diffusion_timesteps
        if text is None:
            if text_embed is None:
                raise ShapeError("a text is missing; give text_embed [b, embed_dim], or a TextCondition as text")
            text = TextCondition.of(text_embed, text_encodings, None)
            if text_cond_drop_prob > 0:
                text = replace(text, keep=torch.rand(len(text_embed), device=text_embed.device) >= text_cond_drop_prob)
        if isinstance(text, Memory):
            told = text.next(self._changing(image_embed, time, self_cond))
            return self.causal_transformer.go_on(told, text, 1)[0].squeeze(1)
        if image_embed.shape != text.embed.shape:
            raise ShapeError(
                f"image {tuple(image_embed.shape)} and text {tuple(text.embed.shape)} embeddings are no pairs; "
                f"this prior takes [b, {self.embed_dim}]"
            )
        tokens = self.text(text).then(self._changing(image_embed, time, self_cond))
        out: Tensor = self.causal_transformer(tokens)
        return out.squeeze(1)

    def forward_with_cond_scale(
        self, image_embed: Tensor, diffusion_timesteps: Tensor, *, cond_scale: float = 1.0, **text: Any
    ) -> Tensor:
        """`forward`, guided: null + cond_scale (output - null), null being the output without the text.

        Ho & Salimans 2207.12598, equation 6. text: the other arguments of `forward`, text_embed among them.
        """
        output: Tensor = self(image_embed, diffusion_timesteps, **text)
        if cond_scale == 1.0:
            return output
        null: Tensor = self(image_embed, diffusion_timesteps, **{**text, "text_cond_drop_prob": 1.0})
        return null + (output - null) * cond_scale

    def _changing(self, image_embed: Tensor, time: Tensor, self_cond: Tensor | None) -> Tensor:
        """The tokens that differ from step to step: time, image, (self-condition), query."""
        batch = len(image_embed)

        def as_tokens(flat: Tensor) -> Tensor:
            return flat.view(batch, -1, self.dim)

        parts = [as_tokens(self.to_time_embeds(time)), as_tokens(self.to_image_embeds(image_embed))]
        if self.to_self_cond is not None:
            earlier = torch.zeros_like(image_embed) if self_cond is None else self_cond
            parts.append(as_tokens(self.to_self_cond(earlier)))
        parts.append(self.learned_query.expand(batch, 1, -1))
        return torch.cat(parts, dim=1)
