"""The prior network of Karlo, Kandinsky 2 and ECLIPSE: diffusers' `PriorTransformer`, weight for weight.

Sequence: [text states?, text embedding, time?, image embedding, query?]; the output is read off the last place. Names
of weights and settings are diffusers', so a state dict goes over in both directions as it is. Shapes: b rows, e width
of an embedding, l text length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.inputs import dtype_of
from dalle2_core.keywords import chosen
from dalle2_core.types import TextCondition


@dataclass(frozen=True, slots=True)
class UnclipTransformerConfig:
    """Settings of diffusers' `PriorTransformer`, under its names; Kandinsky 2.2 has 20 layers of 32 heads of 64.

    num_attention_heads, attention_head_dim, num_layers: of the transformer. embedding_dim: width of the image
    embeddings that come in and, unless embedding_proj_dim or clip_embed_dim say another, of text embeddings and output.
    num_embeddings: places of text states, 77 for CLIP; 0 without any. additional_embeddings: the places behind them.
    encoder_hid_proj_type: "linear" reads text states, None does not. embedding_proj_norm_type, norm_in_type: "layer"
    normalises the text embedding, or the whole sequence. added_emb_type: "prd" adds a learned query, which the output
    is read off. time_embed_dim: hidden width of the time's MLP; None takes the transformer's. reads_time: False for
    ECLIPSE, which predicts in one pass (Patel et al. 2312.04655).
    """

    num_attention_heads: int = 32
    attention_head_dim: int = 64
    num_layers: int = 20
    embedding_dim: int = 768
    num_embeddings: int = 77
    additional_embeddings: int = 4
    dropout: float = 0.0
    time_embed_act_fn: Literal["silu", "gelu", "mish"] = "silu"
    norm_in_type: Literal["layer"] | None = None
    embedding_proj_norm_type: Literal["layer"] | None = None
    encoder_hid_proj_type: Literal["linear"] | None = "linear"
    added_emb_type: Literal["prd"] | None = "prd"
    time_embed_dim: int | None = None
    embedding_proj_dim: int | None = None
    clip_embed_dim: int | None = None
    reads_time: bool = True

    def __post_init__(self) -> None:
        for name in ("num_attention_heads", "attention_head_dim", "num_layers", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.inner_dim % 2:
            raise ConfigError(f"{self.num_attention_heads} heads of {self.attention_head_dim} are an odd width")
        for name, known in (
            ("norm_in_type", ("layer",)),
            ("embedding_proj_norm_type", ("layer",)),
            ("encoder_hid_proj_type", ("linear",)),
            ("added_emb_type", ("prd",)),
        ):
            if getattr(self, name) is not None:
                chosen(dict.fromkeys(known), getattr(self, name), f"network.{name}")
        chosen(_ACTIVATIONS, self.time_embed_act_fn, "network.time_embed_act_fn")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network.dropout is {self.dropout}; it must be in [0, 1)")
        behind = 2 + self.reads_time + (self.added_emb_type is not None)
        if self.additional_embeddings != behind:
            raise ConfigError(
                f"network.additional_embeddings is {self.additional_embeddings}; behind the text states come {behind}"
            )
        if (self.num_embeddings > 0) != (self.encoder_hid_proj_type is not None):
            raise ConfigError(
                f"network.num_embeddings is {self.num_embeddings} and encoder_hid_proj_type is "
                f"{self.encoder_hid_proj_type!r}; a network that reads no text states has no places for them"
            )

    @property
    def inner_dim(self) -> int:
        """Width of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_dim(self) -> int:
        """Width of the text embedding."""
        return self.embedding_dim if self.embedding_proj_dim is None else self.embedding_proj_dim

    @property
    def output_dim(self) -> int:
        """Width of the output."""
        return self.embedding_dim if self.clip_embed_dim is None else self.clip_embed_dim


_ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish}


class UnclipTransformer(nn.Module):
    """(noised image embedding, time, text) → an image embedding in the same, standardised space.

    clip_mean, clip_std: [1, e]; (raw embedding - clip_mean) / clip_std is that space. They are not trained.
    """

    def __init__(self, config: UnclipTransformerConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.inner_dim
        self.time_embedding = _TimeEmbedding(config) if config.reads_time else None
        self.proj_in = nn.Linear(config.embedding_dim, inner)
        self.embedding_proj_norm = nn.LayerNorm(config.text_dim) if config.embedding_proj_norm_type else None
        self.embedding_proj = nn.Linear(config.text_dim, inner)
        self.encoder_hidden_states_proj = (
            nn.Linear(config.embedding_dim, inner) if config.encoder_hid_proj_type else None
        )
        places = config.num_embeddings + config.additional_embeddings
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(1, places, inner))
        self.prd_embedding = nn.Parameter(0.02 * torch.randn(1, 1, inner)) if config.added_emb_type else None
        self.transformer_blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm_in = nn.LayerNorm(inner) if config.norm_in_type else None
        self.norm_out = nn.LayerNorm(inner)
        self.proj_to_clip_embeddings = nn.Linear(inner, config.output_dim)
        self.clip_mean = nn.Parameter(torch.zeros(1, config.output_dim), requires_grad=False)
        self.clip_std = nn.Parameter(torch.ones(1, config.output_dim), requires_grad=False)

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads the states of a text's tokens."""
        return self.encoder_hidden_states_proj is not None

    def forward(
        self, image_embed: Tensor, time: Tensor | None, text: TextCondition, self_cond: Tensor | None = None
    ) -> Tensor:
        """[b, e]. image_embed: [b, e], noised. time: [b] integer; not looked at by a network that reads none.

        text: embedding [b, e] as the projection gives it, not normalised; tokens [b, l, e], l up to num_embeddings,
        real ones first. Raises ShapeError if something does not fit.
        """
        self._check(image_embed, text)
        batch, config = len(image_embed), self.config
        parts, hidden = [], None
        embed = text.embed if self.embedding_proj_norm is None else self.embedding_proj_norm(text.embed)
        if self.encoder_hidden_states_proj is not None:
            assert text.tokens is not None
            parts.append(self.encoder_hidden_states_proj(text.tokens))
            hidden = text.mask
        parts.append(self.embedding_proj(embed)[:, None])
        if self.time_embedding is not None:
            assert time is not None
            parts.append(self.time_embedding(time)[:, None])
        parts.append(self.proj_in(image_embed)[:, None])
        if self.prd_embedding is not None:
            parts.append(self.prd_embedding.to(image_embed.dtype).expand(batch, -1, -1))
        x = torch.cat(parts, dim=1)
        # Places behind the text are those behind the longest text there can be.
        length = x.shape[1] - config.additional_embeddings
        places = self.positional_embedding
        x = x + torch.cat((places[:, :length], places[:, config.num_embeddings :]), dim=1).to(x.dtype)
        x = x if self.norm_in is None else self.norm_in(x)
        bias = _mask(x, length, hidden)
        for block in self.transformer_blocks:
            x = block(x, bias)
        out: Tensor = self.proj_to_clip_embeddings(self.norm_out(x[:, -1]))
        return out

    def _check(self, image_embed: Tensor, text: TextCondition) -> None:
        config, rows = self.config, len(image_embed)
        if image_embed.shape != (rows, config.embedding_dim) or text.embed.shape != (rows, config.text_dim):
            raise ShapeError(
                f"image {tuple(image_embed.shape)} and text {tuple(text.embed.shape)} embeddings; this prior takes "
                f"[b, {config.embedding_dim}] and [b, {config.text_dim}]"
            )
        if not self.reads_tokens:
            return
        tokens = text.tokens
        if tokens is None:
            raise ShapeError(
                f"this prior reads the states of a text's tokens, [b, l, {config.embedding_dim}], and was given none"
            )
        if tokens.shape[2] != config.embedding_dim or tokens.shape[1] > config.num_embeddings:
            raise ShapeError(
                f"text tokens are {tuple(tokens.shape)}; this prior takes [b, l, {config.embedding_dim}], l up to "
                f"{config.num_embeddings}"
            )


def _mask(x: Tensor, length: int, real: Tensor | None) -> Tensor:
    """Which place sees which, [b or 1, 1, s, s] bool: itself and those before it, but no padding of the text."""
    size = x.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()[None]
    if real is None:
        return causal[:, None]
    visible = F.pad(real, (0, size - length), value=True)
    # A place of the padding sees itself: a row without anything to see would have no mean.
    alone = torch.eye(size, dtype=torch.bool, device=x.device)[None]
    return ((causal & visible[:, None, :]) | alone)[:, None]


class _TimeEmbedding(nn.Module):
    """[b] → [b, inner]: cosines and sines of the timestep (Ho et al. 2006.11239), through two layers."""

    def __init__(self, config: UnclipTransformerConfig) -> None:
        super().__init__()
        inner = config.inner_dim
        hidden = inner if config.time_embed_dim is None else config.time_embed_dim
        self.frequencies = inner // 2
        self.linear_1 = nn.Linear(inner, hidden)
        self.act = _ACTIVATIONS[config.time_embed_act_fn]()
        self.linear_2 = nn.Linear(hidden, inner)

    def forward(self, time: Tensor) -> Tensor:
        exponents = -math.log(10000.0) * torch.arange(self.frequencies, device=time.device) / self.frequencies
        angles = time[:, None].float() * exponents.exp()[None]
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
        out: Tensor = self.linear_2(self.act(self.linear_1(waves.to(dtype_of(self)))))
        return out


class _Block(nn.Module):
    """Attention and a feed-forward layer of four times the width, each on a normalised input, each added."""

    def __init__(self, config: UnclipTransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.inner_dim)
        self.attn1 = _Attention(config)
        self.norm3 = nn.LayerNorm(config.inner_dim)
        self.ff = _FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class _Attention(nn.Module):
    def __init__(self, config: UnclipTransformerConfig) -> None:
        super().__init__()
        inner = config.inner_dim
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(inner, inner) for _ in range(3))
        self.to_out = nn.ModuleList((nn.Linear(inner, inner), nn.Dropout(config.dropout)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, size, _ = x.shape
        q, k, v = (to(x).view(batch, size, self.heads, -1).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        for layer in self.to_out:
            out = layer(out.transpose(1, 2).reshape(batch, size, -1) if out.ndim == 4 else out)
        return out


class _FeedForward(nn.Module):
    """net.0.proj and net.2 are the layers' names in diffusers."""

    def __init__(self, config: UnclipTransformerConfig) -> None:
        super().__init__()
        inner = config.inner_dim
        self.net = nn.ModuleList(
            (
                nn.ModuleDict({"proj": nn.Linear(inner, 4 * inner)}),
                nn.Dropout(config.dropout),
                nn.Linear(4 * inner, inner),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        widen, drop, narrow = self.net
        out: Tensor = narrow(drop(F.gelu(widen["proj"](x))))  # type: ignore[index]
        return out
