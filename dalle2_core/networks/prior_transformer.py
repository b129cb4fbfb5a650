"""The prior's network: a causal transformer over a handful of tokens. It knows nothing of diffusion.

Sequence: [text tokens?, text embedding, time, image embedding, (self-condition), learned query]; the output is read
off the query. Ramesh et al. 2204.06125, section 2.2. Without text tokens that is four or five tokens: there is
no padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.keywords import from_keywords
from dalle2_core.networks.layers import MLP, Attention, LayerNorm, RelPosBias, Rotary, SinusoidalTime, feed_forward
from dalle2_core.types import TextCondition


@dataclass(frozen=True, slots=True)
class PriorNetworkConfig:
    """Sizes of the network; the names are DALLE2-pytorch's, `embed_dim` excepted.

    dim: width of the model; None takes the embeddings'. embed_dim: width of the embeddings; None takes `dim`.
    num_timesteps: a learned vector for each of that many timesteps; None computes them from sines.
    num_time_embeds, num_image_embeds, num_text_embeds: tokens that each of these becomes.
    max_text_len: longest text in tokens; text tokens are `dim` wide.
    self_cond: the network also sees an earlier estimate of the image embedding.
    attn_dropout, ff_dropout: shares dropped in training. norm_in, norm_out: layer norm before and after all layers.
    final_proj: a linear map at the end; always there if embed_dim differs from dim.
    normformer: one more norm in each feed-forward. rotary_emb: rotary positions besides the relative bias.
    """

    dim: int | None = None
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4
    embed_dim: int | None = None
    num_timesteps: int | None = None
    num_time_embeds: int = 1
    num_image_embeds: int = 1
    num_text_embeds: int = 1
    max_text_len: int = 256
    self_cond: bool = False
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    norm_in: bool = False
    norm_out: bool = True
    final_proj: bool = True
    normformer: bool = False
    rotary_emb: bool = True

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "dim_head", "ff_mult", "embed_dim", "num_timesteps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"network.{name} is {value}; it must be 1 or more")
        for name in ("num_time_embeds", "num_image_embeds", "num_text_embeds", "max_text_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("attn_dropout", "ff_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; it must be in [0, 1)")

    def for_embeddings(self, width: int) -> PriorNetworkConfig:
        """With both widths filled in for embeddings of `width`. Raises ConfigError if it was made for others."""
        if self.embed_dim not in (None, width):
            raise ConfigError(
                f"network.embed_dim is {self.embed_dim}, but the embeddings have {width} dimensions; leave it out"
            )
        return replace(self, dim=self.dim or width, embed_dim=width)


class CausalTransformer(nn.Module):
    """Pre-norm blocks of causal attention and feed-forward."""

    def __init__(self, dim: int, dim_out: int, config: PriorNetworkConfig) -> None:
        super().__init__()
        self.rotary = Rotary(2 * (min(32, config.dim_head) // 2)) if config.rotary_emb else None
        self.init_norm = LayerNorm(dim) if config.norm_in else nn.Identity()
        self.rel_pos_bias = RelPosBias(config.heads)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    Attention(dim, config.heads, config.dim_head, config.attn_dropout),
                    feed_forward(dim, config.ff_mult, config.ff_dropout, config.normformer),
                )
            )
            for _ in range(config.depth)
        )
        self.norm = LayerNorm(dim) if config.norm_out else nn.Identity()
        projects = config.final_proj or dim_out != dim
        self.project_out = nn.Linear(dim, dim_out, bias=False) if projects else nn.Identity()

    def forward(self, x_BLD: Tensor, visible: Tensor | None) -> Tensor:
        """The last token's output, [B, dim_out]. visible: [B, L] bool, False hides a token; None hides none.

        What is hidden lies at the front.
        """
        length = x_BLD.shape[1]
        place = torch.arange(length, device=x_BLD.device)[None]
        # The null key, first of the keys, is seen by all; a token by itself and those after it.
        sees = torch.ones(length, length + 1, dtype=torch.bool, device=x_BLD.device).tril(diagonal=1)[None, None]
        if visible is not None:
            sees = sees & nn.functional.pad(visible, (1, 0), value=True)[:, None, None, :]
            # Counted from the first token that is there: the batch's longest text must not move the others.
            place = (place - (~visible).sum(dim=1, keepdim=True)).clamp(min=0)
        bias = self.rel_pos_bias(place).masked_fill(~sees, float("-inf"))
        angles = None if self.rotary is None else self.rotary(place)

        x = self.init_norm(x_BLD)
        for block in self.layers:
            assert isinstance(block, nn.ModuleList)
            attend, feed = block
            x = x + attend(x, bias, angles)
            x = x + feed(x)
        out: Tensor = self.project_out(self.norm(x[:, -1]))
        return out


class DiffusionPriorNetwork(nn.Module):
    """(noised image embedding, time, text) → a tensor of the image embedding's shape."""

    def __init__(self, dim: int, **keywords: Any) -> None:
        """Keywords: the fields of PriorNetworkConfig. An unknown one is a TypeError that names the near ones."""
        super().__init__()
        config = from_keywords(PriorNetworkConfig, "DiffusionPriorNetwork", {"dim": dim, **keywords})
        config = config.for_embeddings(config.embed_dim or dim)
        width = config.embed_dim
        assert width is not None
        self.config = config
        self.dim = dim
        self.embed_dim = width
        self.to_text_embeds = nn.Sequential(_to_tokens(width, dim, config.num_text_embeds))
        self.to_image_embeds = nn.Sequential(_to_tokens(width, dim, config.num_image_embeds))
        self.to_self_cond = _to_tokens(width, dim, 1) if config.self_cond else None
        tokens = dim * config.num_time_embeds
        self.to_time_embeds = nn.Sequential(
            nn.Sequential(SinusoidalTime(dim), MLP(dim, tokens))
            if config.num_timesteps is None
            else nn.Embedding(config.num_timesteps, tokens)
        )
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.null_text_embeds = nn.Parameter(torch.randn(1, config.num_text_embeds, dim))
        self.causal_transformer = CausalTransformer(dim, width, config)

    @classmethod
    def from_config(cls, config: PriorNetworkConfig) -> DiffusionPriorNetwork:
        """The network of a config whose `dim` is known."""
        if config.dim is None:
            raise ConfigError("network.dim is not known yet; use config.for_embeddings(width) first")
        return cls(**{name: getattr(config, name) for name in config.__dataclass_fields__})

    def forward(
        self, image_embed: Tensor, time: Tensor, text: TextCondition, self_cond: Tensor | None = None
    ) -> Tensor:
        """[b, embed_dim]. image_embed: [b, embed_dim]. time: [b] integer. self_cond: [b, embed_dim] or None.

        Raises ShapeError if a width is not this network's.
        """
        self._check(image_embed, text)
        batch = len(image_embed)

        def as_tokens(flat: Tensor) -> Tensor:
            return flat.view(batch, -1, self.dim)

        text_tokens = as_tokens(self.to_text_embeds(text.embed))
        if text.keep is not None:
            text_tokens = torch.where(text.keep[:, None, None], text_tokens, self.null_text_embeds)
        parts = [text_tokens, as_tokens(self.to_time_embeds(time)), as_tokens(self.to_image_embeds(image_embed))]
        if self.to_self_cond is not None:
            earlier = torch.zeros_like(image_embed) if self_cond is None else self_cond
            parts.append(as_tokens(self.to_self_cond(earlier)))
        parts.append(self.learned_query.expand(batch, 1, -1))
        x_BLD = torch.cat(parts, dim=1)

        if text.tokens is None:
            out: Tensor = self.causal_transformer(x_BLD, None)
            return out
        tokens, real = _right_aligned(text.tokens, text.mask)
        if text.keep is not None:
            real = real & text.keep[:, None]
        others = torch.ones(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device)
        out = self.causal_transformer(torch.cat((tokens, x_BLD), dim=1), torch.cat((real, others), dim=1))
        return out

    def _check(self, image_embed: Tensor, text: TextCondition) -> None:
        width = self.embed_dim
        if image_embed.shape[1:] != (width,) or text.embed.shape != image_embed.shape:
            raise ShapeError(
                f"image {tuple(image_embed.shape)} and text {tuple(text.embed.shape)} embeddings do not fit a "
                f"prior for [b, {width}]; were they made by the encoder it was trained with?"
            )
        if text.tokens is not None and (
            text.tokens.shape[2] != self.dim or text.tokens.shape[1] > self.config.max_text_len
        ):
            raise ShapeError(
                f"text tokens {tuple(text.tokens.shape)} do not fit a prior for "
                f"[b, up to {self.config.max_text_len}, {self.dim}]"
            )


def _to_tokens(width: int, dim: int, count: int) -> nn.Module:
    """[b, width] → [b, count * dim]; nothing to learn where one token is as wide as the embedding."""
    return nn.Identity() if count == 1 and width == dim else nn.Linear(width, count * dim)


def _right_aligned(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move the padding to the front, so that a text lies at the same distance from what follows in any batch."""
    batch, length, _ = tokens.shape
    if mask is None:
        return tokens, torch.ones(batch, length, dtype=torch.bool, device=tokens.device)
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    return tokens.gather(1, order[:, :, None].expand_as(tokens)), mask.gather(1, order)
