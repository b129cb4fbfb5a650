"""The causal transformer, and the text at the start of its sequence: what all networks for priors share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.keywords import chosen
from dalle2_core.networks.layers import Attention, KeysValues, LayerNorm, RelPosBias, Rotary, feed_forward
from dalle2_core.types import TextCondition

_CHOICES = {
    "attention": ("cosine", "dot"),
    "scaled_norms": ("none", "last", "all"),
    "text_padding": ("none", "learned", "masked"),
}


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

    The rest is for weights of DALLE2-pytorch, whose versions differ in them (`embedpipe convert` sets them):
    attention: "cosine" similarity, or the scaled "dot" product. bias_scale: multiplies the relative bias.
    scaled_norms: the norms that divide by the largest entry first, "none", the "last" or "all".
    text_padding: "none" cuts a batch to its longest text; "learned" fills it up to max_text_len with learned tokens,
        also where there are no text tokens at all; "masked" leaves the padding in its place and hides it.
    truncated_time: sines and cosines of the timestep are cut to whole numbers.
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
    attention: Literal["cosine", "dot"] = "cosine"
    bias_scale: float = 1.0
    scaled_norms: Literal["none", "last", "all"] = "none"
    text_padding: Literal["none", "learned", "masked"] = "none"
    truncated_time: bool = False

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
        for name, known in _CHOICES.items():
            chosen(dict.fromkeys(known), getattr(self, name), f"network.{name}")

    def for_embeddings(self, width: int) -> PriorNetworkConfig:
        """With both widths filled in for embeddings of `width`. Raises ConfigError if it was made for others."""
        if self.embed_dim not in (None, width):
            raise ConfigError(
                f"network.embed_dim is {self.embed_dim}, but the embeddings have {width} dimensions; leave it out"
            )
        return replace(self, dim=self.dim or width, embed_dim=width)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence, or its next part.

    x: [B, L, D]. place: [B or 1, L], where each token stands. visible: [B, L] bool, False hides a token; None hides
    none.
    """

    x: Tensor
    place: Tensor
    visible: Tensor | None = None

    def then(self, x: Tensor) -> Tokens:
        """With further tokens [B, M, D] at the end, all visible."""
        place = self.place[:, -1:] + 1 + torch.arange(x.shape[1], device=x.device)
        visible = None if self.visible is None else nn.functional.pad(self.visible, (0, x.shape[1]), value=True)
        return Tokens(torch.cat((self.x, x), dim=1), torch.cat((self.place, place), dim=1), visible)


@dataclass(frozen=True, slots=True)
class Memory:
    """What later tokens need of P earlier ones: keys and values of each layer, place [B or 1, P], visible [B, P]."""

    layers: tuple[KeysValues, ...]
    place: Tensor
    visible: Tensor | None

    def next(self, x: Tensor) -> Tokens:
        """Further tokens [B, M, D], all visible."""
        return Tokens(x, self.place[:, -1:] + 1 + torch.arange(x.shape[1], device=x.device))


class CausalTransformer(nn.Module):
    """Pre-norm blocks of causal attention and feed-forward."""

    def __init__(self, dim: int, dim_out: int, config: PriorNetworkConfig) -> None:
        super().__init__()
        scaled = config.scaled_norms == "all"
        self.bias_scale = config.bias_scale
        self.rotary = Rotary(2 * (min(32, config.dim_head) // 2)) if config.rotary_emb else None
        self.init_norm = LayerNorm(dim, scaled) if config.norm_in else nn.Identity()
        self.rel_pos_bias = RelPosBias(config.heads)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    Attention(dim, config.heads, config.dim_head, config.attn_dropout, config.attention, scaled),
                    feed_forward(dim, config.ff_mult, config.ff_dropout, config.normformer, scaled),
                )
            )
            for _ in range(config.depth)
        )
        self.norm = LayerNorm(dim, config.scaled_norms != "none") if config.norm_out else nn.Identity()
        projects = config.final_proj or dim_out != dim
        self.project_out = nn.Linear(dim, dim_out, bias=False) if projects else nn.Identity()

    def forward(self, tokens: Tokens, outputs: int = 1) -> Tensor:
        """Outputs of the last `outputs` tokens, [B, outputs, dim_out]."""
        return self.go_on(tokens, None, outputs)[0]

    def go_on(self, tokens: Tokens, memory: Memory | None, outputs: int) -> tuple[Tensor, Memory]:
        """As `forward`, for tokens that come after those of `memory`; and the memory of all of them."""
        place, visible = tokens.place, tokens.visible
        if memory is not None:
            place = torch.cat((memory.place.expand(len(place), -1), place), dim=1)
            visible = _joined(memory.visible, visible, memory.place.shape[1], tokens.x)
        bias = self._bias(tokens, place, visible)
        angles = None if self.rotary is None else self.rotary(tokens.place)

        x, kept = self.init_norm(tokens.x), []
        for number, block in enumerate(self.layers):
            assert isinstance(block, nn.ModuleList)
            attend, feed = block
            # After the last layer's keys and values, only the tokens that are read go on.
            asking = outputs if number + 1 == len(self.layers) else x.shape[1]
            past = None if memory is None else memory.layers[number]
            taken, keys_values = attend(x, bias[:, :, -asking:], angles, past)
            kept.append(keys_values)
            x = x[:, -asking:] + taken
            x = x + feed(x)
        out: Tensor = self.project_out(self.norm(x[:, -outputs:]))
        return out, Memory(tuple(kept), place, visible)

    def sharding_units(self) -> list[nn.Module]:
        """What sharded training gathers one at a time: attention and feed-forward of each layer."""
        return [part for layer in self.layers for part in layer.children()]

    def _bias(self, tokens: Tokens, place: Tensor, visible: Tensor | None) -> Tensor:
        """Relative bias [B or 1, H, L, 1 + all tokens], -inf where a token must not look."""
        length, every = tokens.x.shape[1], place.shape[1]
        # The null key, first of the keys, is seen by all; a token by itself and those after it.
        sees = torch.ones(length, every + 1, dtype=torch.bool, device=place.device)
        sees = sees.tril(diagonal=every - length + 1)[None, None]
        if visible is not None:
            sees = sees & nn.functional.pad(visible, (1, 0), value=True)[:, None, None, :]
        bias: Tensor = self.rel_pos_bias(tokens.place, place)
        return (bias * self.bias_scale).masked_fill(~sees, float("-inf"))


class TextConditioned(nn.Module):
    """Base of a network whose sequence starts with the text: [text tokens?, text embedding]."""

    def __init__(self, dim: int, config: PriorNetworkConfig) -> None:
        """config: with both widths known."""
        super().__init__()
        width = config.embed_dim
        assert width is not None
        self.config = config
        self.dim = dim
        self.embed_dim = width
        self.to_text_embeds = nn.Sequential(to_tokens(width, dim, config.num_text_embeds))
        self.null_text_embeds = nn.Parameter(torch.randn(1, config.num_text_embeds, dim))
        if config.text_padding == "learned":
            self.null_text_encodings = nn.Parameter(torch.randn(1, config.max_text_len, dim))

    def text(self, text: TextCondition) -> Tokens:
        """The tokens of the text. Raises ShapeError if a width is not this network's."""
        self._check(text)
        batch, padding = len(text.embed), self.config.text_padding
        embeds = self.to_text_embeds(text.embed).view(batch, -1, self.dim)
        if text.keep is not None and padding != "masked":
            embeds = torch.where(text.keep[:, None, None], embeds, self.null_text_embeds)
        if padding == "learned":
            return _in_order(torch.cat((self._filled_up(text, embeds), embeds), dim=1))
        if text.tokens is None:
            if padding == "masked" and text.keep is not None:
                return _in_order(embeds, text.keep[:, None].expand(embeds.shape[:2]))
            return _in_order(embeds)

        mask = text.mask
        real = torch.ones(text.tokens.shape[:2], dtype=torch.bool, device=embeds.device) if mask is None else mask
        tokens = text.tokens.to(embeds.dtype)
        if padding == "masked":
            kept = real.new_ones(batch) if text.keep is None else text.keep
            seen = torch.cat((real & kept[:, None], kept[:, None].expand(embeds.shape[:2])), dim=1)
            return _in_order(torch.cat((tokens, embeds), dim=1), seen)
        if mask is not None:
            tokens, real = _right_aligned(tokens, mask)
        if text.keep is not None:
            real = real & text.keep[:, None]
        visible = nn.functional.pad(real, (0, embeds.shape[1]), value=True)
        # Counted from the first token that is there: the batch's longest text must not move the others.
        place = torch.arange(visible.shape[1], device=visible.device) - (~visible).sum(dim=1, keepdim=True)
        return Tokens(torch.cat((tokens, embeds), dim=1), place.clamp(min=0), visible)

    def _filled_up(self, text: TextCondition, embeds: Tensor) -> Tensor:
        """Text tokens [B, max_text_len, D], with learned ones where there is no token or the text is dropped."""
        learned = self.null_text_encodings.to(embeds.dtype).expand(len(embeds), -1, -1)
        if text.tokens is None:
            return learned
        missing = self.config.max_text_len - text.tokens.shape[1]
        real = torch.ones(text.tokens.shape[:2], dtype=torch.bool, device=embeds.device)
        real = real if text.mask is None else text.mask
        real = real if text.keep is None else real & text.keep[:, None]
        tokens = nn.functional.pad(text.tokens.to(embeds.dtype), (0, 0, 0, missing))
        return torch.where(nn.functional.pad(real, (0, missing), value=False)[:, :, None], tokens, learned)

    def _check(self, text: TextCondition) -> None:
        if text.embed.ndim != 2 or text.embed.shape[1] != self.embed_dim:
            raise ShapeError(
                f"text embeddings {tuple(text.embed.shape)} do not fit a prior for [b, {self.embed_dim}]; "
                "were they made by the encoder it was trained with?"
            )
        if text.tokens is not None and (
            text.tokens.shape[2] != self.dim or text.tokens.shape[1] > self.config.max_text_len
        ):
            raise ShapeError(
                f"text tokens {tuple(text.tokens.shape)} do not fit a prior for "
                f"[b, up to {self.config.max_text_len}, {self.dim}]"
            )


def to_tokens(width: int, dim: int, count: int) -> nn.Module:
    """[b, width] → [b, count * dim]; nothing to learn where one token is as wide as the embedding."""
    return nn.Identity() if count == 1 and width == dim else nn.Linear(width, count * dim)


def _in_order(x: Tensor, visible: Tensor | None = None) -> Tokens:
    return Tokens(x, torch.arange(x.shape[1], device=x.device)[None], visible)


def _right_aligned(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding to the front, so that a text lies at the same distance from what follows in any batch."""
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    return tokens.gather(1, order[:, :, None].expand_as(tokens)), mask.gather(1, order)


def _joined(before: Tensor | None, after: Tensor | None, length: int, x: Tensor) -> Tensor | None:
    """`visible` of `length` earlier tokens and the tokens x [B, L, D]; None where none is hidden."""
    if before is None and after is None:
        return None
    first = torch.ones(len(x), length, dtype=torch.bool, device=x.device) if before is None else before
    second = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if after is None else after
    return torch.cat((first, second), dim=1)
