"""Time, image embedding and text as the U-Net's blocks see them: one vector, and tokens to attend to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_core.conditioning import DecoderCondition
from dalle2_core.errors import ShapeError
from dalle2_core.networks.layers import SinusoidalTime
from dalle2_core.networks.unet_blocks import Context
from dalle2_core.networks.unet_config import UnetConfig


class Conditioning(nn.Module):
    """(time, condition) → the time's vector [b, 4 dim], tokens for the blocks, tokens for the blocks in the middle.

    Only what the config asks for has weights. Where the image embedding is dropped, learned tokens and a learned
    vector stand for it; where the text is dropped, its tokens are hidden.
    """

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.context_width, 4 * config.dim
        self.to_time_hiddens = nn.Sequential(SinusoidalTime(config.dim), nn.Linear(config.dim, hidden), nn.GELU())
        self.to_time_tokens = nn.Linear(hidden, config.num_time_tokens * width)
        self.to_time_cond = nn.Linear(hidden, hidden)
        self.image_to_tokens: nn.Module | None = None
        self.to_image_hiddens: nn.Module | None = None
        if config.sees_image_embed:
            assert config.image_embed_dim is not None
            self.image_to_tokens = nn.Linear(config.image_embed_dim, config.num_image_tokens * width)
            self.null_image_embed = nn.Parameter(torch.randn(1, config.num_image_tokens, width))
            if config.add_image_embeds_to_time:
                self.to_image_hiddens = nn.Sequential(nn.Linear(config.image_embed_dim, hidden), nn.GELU())
                self.null_image_hiddens = nn.Parameter(torch.randn(1, hidden))
        self.to_lowres_noise_cond: nn.Module | None = None
        if config.lowres_noise_cond:
            self.to_lowres_noise_cond = nn.Sequential(
                SinusoidalTime(config.dim), nn.Linear(config.dim, hidden), nn.GELU(), nn.Linear(hidden, hidden)
            )
        self.norm_cond = nn.LayerNorm(width)
        self.norm_mid_cond = nn.LayerNorm(width)
        self.text_to_cond: nn.Module | None = None
        if config.cond_on_text_encodings:
            assert config.text_embed_dim is not None
            self.text_to_cond = nn.Linear(config.text_embed_dim, width)

    def forward(self, time: Tensor, condition: DecoderCondition) -> tuple[Tensor, Context, Context]:
        """time: [b]. `condition` has passed `check`."""
        hiddens = self.to_time_hiddens(time)
        vector = self.to_time_cond(hiddens)
        if self.to_lowres_noise_cond is not None:
            vector = vector + self.to_lowres_noise_cond(condition.lowres_noise)
        tokens = self.to_time_tokens(hiddens).view(len(time), self.config.num_time_tokens, -1)
        if self.image_to_tokens is not None:
            embed, keep = condition.image_embed, condition.image_keep
            image_tokens = self.image_to_tokens(embed).view(len(time), self.config.num_image_tokens, -1)
            tokens = torch.cat((tokens, _kept(image_tokens, keep, self.null_image_embed)), dim=1)
            if self.to_image_hiddens is not None:
                vector = vector + _kept(self.to_image_hiddens(embed), keep, self.null_image_hiddens)
        return vector, Context(self.norm_cond(tokens)), self._with_text(tokens, condition)

    def _with_text(self, tokens: Tensor, condition: DecoderCondition) -> Context:
        if self.text_to_cond is None or condition.text_tokens is None:
            return Context(self.norm_mid_cond(tokens))
        real = condition.text_mask
        if real is None:
            real = torch.ones(condition.text_tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if condition.text_keep is not None:
            real = real & condition.text_keep[:, None]
        # What stands in padding never reaches a sum, not even as NaN times 0.
        text = self.text_to_cond(condition.text_tokens.masked_fill(~real[:, :, None], 0.0))
        mask = torch.cat((real.new_ones(tokens.shape[:2]), real), dim=1)
        return Context(self.norm_mid_cond(torch.cat((tokens, text), dim=1)), mask)

    def check(self, condition: DecoderCondition, rows: int, *, besides_lowres: bool = False) -> None:
        """Raises ShapeError if what the config asks for is missing or has another width, or more is given.

        besides_lowres: leave the smaller image's noise out, which comes later.
        """
        config = self.config
        _check_rows("image_embed", condition.image_embed, config.sees_image_embed, (rows, config.image_embed_dim))
        text = condition.text_tokens
        length = None if text is None or text.ndim != 3 else text.shape[1]
        asks = config.cond_on_text_encodings
        _check_rows("text_tokens", text, asks, (rows, length, config.text_embed_dim))
        if length is not None and length > config.max_text_len:
            raise ShapeError(f"texts of {length} tokens; this U-Net takes up to max_text_len ({config.max_text_len})")
        if not besides_lowres:
            _check_rows("lowres_noise", condition.lowres_noise, config.lowres_noise_cond, (rows,))


def _check_rows(name: str, tensor: Tensor | None, expected: bool, shape: tuple[int | None, ...]) -> None:
    if tensor is None and expected:
        raise ShapeError(f"this U-Net is conditioned on {name}, and was given none")
    if tensor is not None and not expected:
        raise ShapeError(f"this U-Net is not conditioned on {name}, and was given some")
    if tensor is not None and tuple(tensor.shape) != shape:
        advice = "; are they from the encoder it was trained with?" if len(shape) > 1 else ""
        raise ShapeError(f"{name} is {tuple(tensor.shape)}; this U-Net takes {list(shape)}{advice}")


def _kept(values: Tensor, keep: Tensor | None, null: Tensor) -> Tensor:
    """Values [b, …] where `keep` [b] says so, elsewhere `null` [1, …]."""
    if keep is None:
        return values
    return torch.where(keep.view(-1, *(1,) * (values.ndim - 1)), values, null.to(values.dtype))
