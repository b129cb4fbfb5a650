"""The decoder's network: (noised image, time, conditions) → an image. It knows nothing of diffusion.

Ramesh et al. 2204.06125, section 2.1, on the U-Net of Nichol et al. 2112.10741: the image embedding is added to the
time's embedding and becomes tokens besides, to which the blocks attend.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dalle2_core.conditioning import DecoderCondition, published_condition
from dalle2_core.errors import ShapeError
from dalle2_core.keywords import from_keywords
from dalle2_core.networks.image_attention import LinearAttention, SelfAttention
from dalle2_core.networks.recompute import recomputed_in_backward
from dalle2_core.networks.unet_blocks import (
    Context,
    CrossEmbed,
    Downsample,
    NearestUpsample,
    PixelShuffleUpsample,
    ResnetBlock,
    UpsampleCombiner,
)
from dalle2_core.networks.unet_conditioning import Conditioning
from dalle2_core.networks.unet_config import UnetConfig


class Unet(nn.Module):
    """A U-Net. Weights and feature maps are kept channels last, in which convolutions run faster."""

    def __init__(self, dim: int, **keywords: Any) -> None:
        """Keywords: the fields of UnetConfig. An unknown one is a TypeError that names the near ones."""
        super().__init__()
        if "sparse_attn_window" in keywords:  # in a script of DALLE2-pytorch's README, which shall run as it is
            del keywords["sparse_attn_window"]
            warnings.warn("sparse_attn_window changes nothing: DALLE2-pytorch never read it either", stacklevel=2)
        config = from_keywords(UnetConfig, "Unet", {"dim": dim, **keywords})
        config.require_widths()
        self.config = config
        make = _Parts(config)
        patch = config.patch_size**2
        inputs = config.channels * (1 + config.lowres_cond + config.self_cond) * patch
        widths = config.widths
        last = len(config.dim_mults) - 1

        self.init_conv = make.first_convolution(inputs)
        self.condition = Conditioning(config)
        first_groups = config.groups_by_resolution[0]
        self.init_resnet_block = (
            make.block(widths[0], widths[0], first_groups, attends=False) if config.memory_efficient else None
        )
        # What a resolution's blocks hand over the bridge is as wide as what they work on.
        bridges = widths[1:] if config.memory_efficient else widths[:-1]
        self.downs = nn.ModuleList(
            DownResolution(make, place, widths[place], widths[place + 1], is_last=place == last)
            for place in range(last + 1)
        )
        deepest = config.groups_by_resolution[-1]
        self.mid_block1 = make.block(widths[-1], widths[-1], deepest, attends=True)
        self.mid_attn = make.self_attention(widths[-1]) if config.attend_at_middle else None
        self.mid_block2 = make.block(widths[-1], widths[-1], deepest, attends=True)
        self.ups = nn.ModuleList(
            UpResolution(make, place, widths[place + 1], widths[place] if place else dim, bridges[place])
            for place in reversed(range(last + 1))
        )
        self.upsample_combiner = (
            UpsampleCombiner(widths[:0:-1], dim, first_groups) if config.combine_upsample_fmaps else None
        )
        # Without memory_efficient the first resolution's width stays: nothing is left to be upsampled there.
        out_of_ups = dim if config.memory_efficient else widths[1]
        combined = dim * len(self.ups) if config.combine_upsample_fmaps else 0
        self.final_resnet_block = make.block(out_of_ups + combined + widths[0], dim, first_groups, attends=False)
        size = config.final_conv_kernel_size
        seen_again = config.channels * patch if config.lowres_cond else 0
        self.to_out = nn.Conv2d(dim + seen_again, config.output_channels * patch, size, padding=size // 2)
        # A new network says 0 whatever it sees: the mean of centred data.
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward_with_cond_scale(self, x: Tensor, time: Tensor, *, cond_scale: float = 1.0, **published: Any) -> Tensor:
        """`forward`, guided by image embedding and text together: null + cond_scale (output - null).

        Ho & Salimans 2207.12598, equation 6.
        """
        output: Tensor = self(x, time, **published)
        if cond_scale == 1.0:
            return output
        dropped = {"image_cond_drop_prob": 1.0, "text_cond_drop_prob": 1.0}
        null: Tensor = self(x, time, **{**published, **dropped})
        return null + (output - null) * cond_scale

    @classmethod
    def from_config(cls, config: UnetConfig) -> Unet:
        """A new network with these settings."""
        return cls(**{name: getattr(config, name) for name in config.__dataclass_fields__})

    def fitted(self, **changes: Any) -> Unet:
        """This network if its config has these values already, else a new one with them.

        The new one keeps every weight whose name and shape are the same.
        """
        config = replace(self.config, **changes)
        if config == self.config:
            return self
        changed = Unet.from_config(config)
        own, theirs = changed.state_dict(), self.state_dict()
        kept = {name: theirs[name] for name in own if name in theirs and theirs[name].shape == own[name].shape}
        changed.load_state_dict(kept, strict=False)
        return changed.to(next(self.parameters()).device)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        condition: DecoderCondition | None = None,
        self_cond: Tensor | None = None,
        **published: Any,
    ) -> Tensor:
        """[b, channels_out, h, w].

        Args:
            x: [b, channels, h, w]; h and w are multiples of `config.size_multiple`.
            time: [b], any number that grows with the noise.
            condition: what the config asks for must be there; what it does not ask for must not.
            self_cond: an earlier estimate shaped like x, or None for none; not looked at without config.self_cond.
            published: in place of `condition`, the keywords of DALLE2-pytorch; see `published_condition`.

        Raises ShapeError if a tensor does not fit.
        """
        if condition is None:
            condition = published_condition(**published)
        elif published:
            raise TypeError(f"a condition is given, and {', '.join(published)} besides; give one of them")
        self._check(x, time, condition)
        inputs = [x]
        if self.config.self_cond:
            inputs.append(torch.zeros_like(x) if self_cond is None else self_cond)
        if condition.lowres is not None:
            inputs.append(condition.lowres)
        seen = self._patched(torch.cat(inputs, dim=1))
        first = self.init_conv(seen.contiguous(memory_format=torch.channels_last))
        hidden_time, context, middle_context = self.condition(time, condition)

        x = first
        if self.init_resnet_block is not None:
            x = self._run(self.init_resnet_block, x, hidden_time, None)
        bridges: list[Tensor] = []
        for down in self.downs:
            assert isinstance(down, DownResolution)
            x = self._descend(down, x, hidden_time, context, bridges)
        x = self._run(self.mid_block1, x, hidden_time, middle_context)
        if self.mid_attn is not None:
            x = self.mid_attn(x)
        x = self._run(self.mid_block2, x, hidden_time, middle_context)
        outputs: list[Tensor] = []
        for up in self.ups:
            assert isinstance(up, UpResolution)
            x = self._ascend(up, x, hidden_time, context, bridges)
            outputs.append(x)
            x = up.upsample(x)
        if self.upsample_combiner is not None:
            x = self.upsample_combiner(x, outputs)
        x = self._run_joined(self.final_resnet_block, (x, first), hidden_time, None)
        if condition.lowres is not None:
            x = torch.cat((x, self._patched(condition.lowres)), dim=1)
        out: Tensor = self.to_out(x)
        return out if self.config.patch_size == 1 else F.pixel_shuffle(out, self.config.patch_size)

    def _patched(self, image: Tensor) -> Tensor:
        return image if self.config.patch_size == 1 else F.pixel_unshuffle(image, self.config.patch_size)

    def sharding_units(self) -> list[nn.Module]:
        """What sharded training gathers one at a time: the blocks and the attentions, which hold nearly all weights."""
        return [it for it in self.modules() if isinstance(it, ResnetBlock | SelfAttention | LinearAttention)]

    def _descend(
        self, down: DownResolution, x: Tensor, time: Tensor, context: Context, bridges: list[Tensor]
    ) -> Tensor:
        """Through one resolution; what its counterpart on the way up will see is put on `bridges`."""
        x = self._run(down.init_block, down.before(x), time, None)
        for block in down.blocks:
            x = self._run(block, x, time, context)
            bridges.append(x)
        x = down.attention(x)
        bridges.append(x)
        out: Tensor = down.after(x)
        return out

    def _ascend(self, up: UpResolution, x: Tensor, time: Tensor, context: Context, bridges: list[Tensor]) -> Tensor:
        """Through one resolution, before its size is doubled."""
        scale = 2**-0.5 if self.config.scale_skip_connection else 1.0
        for block in up.blocks:
            x = self._run_joined(block, (x, _scaled(bridges.pop(), scale)), time, context)
        out: Tensor = up.attention(x)
        return out

    def _run_joined(
        self, block: nn.Module, parts: tuple[Tensor, Tensor], time: Tensor, context: Context | None
    ) -> Tensor:
        """A block on both parts' channels. They are kept apart, as one of them mostly is anyway."""
        joined = torch.cat(parts, dim=1)
        if self.training and self.config.checkpoint_during_training:
            return self._run(block, joined, time, context)
        apart = [part.detach() for part in parts]
        with recomputed_in_backward(joined, lambda: torch.cat(apart, dim=1)):
            return self._run(block, joined, time, context)

    def _run(self, block: nn.Module, x: Tensor, time: Tensor, context: Context | None) -> Tensor:
        out: Tensor
        if self.training and self.config.checkpoint_during_training:
            out = checkpoint(block, x, time, context, sparing=False, use_reentrant=False)
        else:
            out = block(x, time, context)
        return out

    def _check(self, x: Tensor, time: Tensor, condition: DecoderCondition) -> None:
        config, multiple = self.config, self.config.size_multiple
        if x.ndim != 4 or x.shape[1] != config.channels:
            raise ShapeError(f"the image is {tuple(x.shape)}; this U-Net takes [b, {config.channels}, h, w]")
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise ShapeError(
                f"an image of {x.shape[2]} x {x.shape[3]} pixels cannot be halved {multiple.bit_length() - 1} times "
                f"(dim_mults {config.dim_mults}); height and width must be multiples of {multiple}"
            )
        if time.shape != x.shape[:1]:
            raise ShapeError(f"the time is {tuple(time.shape)} for {len(x)} images; it must be [{len(x)}]")
        if (condition.lowres is not None) != config.lowres_cond:
            said = "and was given none" if config.lowres_cond else "is not part of it, and was given one"
            raise ShapeError(f"lowres_cond is {config.lowres_cond}: a smaller image {said}")
        if condition.lowres is not None and condition.lowres.shape != x.shape:
            raise ShapeError(
                f"the smaller image is {tuple(condition.lowres.shape)}; scaled up it must be {tuple(x.shape)}"
            )
        self.condition.check(condition, len(x))


def _scaled(bridge: Tensor, scale: float) -> Tensor:
    return bridge if scale == 1.0 else bridge * scale


class DownResolution(nn.Module):
    """One resolution on the way down: blocks, attention, and a change of size before or after them."""

    def __init__(self, make: _Parts, place: int, dim: int, dim_out: int, is_last: bool) -> None:
        super().__init__()
        config = make.config
        early = config.memory_efficient
        width = dim_out if early else dim
        groups, attends = config.groups_by_resolution[place], place > 0
        self.before = make.downsample(dim, dim_out) if early else nn.Identity()
        self.init_block = make.block(width, width, groups, attends=False)
        self.blocks = nn.ModuleList(
            make.block(width, width, groups, attends) for _ in range(config.blocks_by_resolution[place])
        )
        self.attention = make.attention(place, width)
        halves = not early and not is_last
        self.after = make.downsample(width, dim_out) if halves else nn.Conv2d(width, dim_out, 1)


class UpResolution(nn.Module):
    """One resolution on the way up: each block also sees one bridge; then attention, and the size is doubled."""

    def __init__(self, make: _Parts, place: int, dim: int, dim_out: int, bridge: int) -> None:
        super().__init__()
        config = make.config
        groups, attends = config.groups_by_resolution[place], place > 0
        count = 1 + config.blocks_by_resolution[place]  # one for every bridge
        self.blocks = nn.ModuleList(make.block(dim + bridge, dim, groups, attends) for _ in range(count))
        self.attention = make.attention(place, dim)
        doubles = config.memory_efficient or place > 0
        self.upsample = make.upsample(dim, dim_out) if doubles else nn.Identity()


class _Parts:
    """Makes the parts that a config asks for."""

    def __init__(self, config: UnetConfig) -> None:
        self.config = config

    def first_convolution(self, channels: int) -> nn.Module:
        config = self.config
        if config.init_cross_embed:
            return CrossEmbed(channels, config.first_width, config.init_cross_embed_kernel_sizes, stride=1)
        size = config.init_conv_kernel_size
        return nn.Conv2d(channels, config.first_width, size, padding=size // 2)

    def block(self, dim: int, dim_out: int, groups: int, attends: bool) -> ResnetBlock:
        config = self.config
        return ResnetBlock(
            dim,
            dim_out,
            4 * config.dim,
            groups=groups,
            cond_dim=config.context_width if attends else None,
            standardized=config.resnet_weight_standardization,
            cosine_sim=config.cosine_sim_cross_attn,
        )

    def attention(self, place: int, dim: int) -> nn.Module:
        if self.config.self_attn_by_resolution[place]:
            return self.self_attention(dim)
        if self.config.sparse_attn:
            return LinearAttention(dim, self.config.attn_heads, self.config.attn_dim_head)
        return nn.Identity()

    def self_attention(self, dim: int) -> nn.Module:
        config = self.config
        return SelfAttention(dim, config.attn_heads, config.attn_dim_head, config.cosine_sim_self_attn)

    def downsample(self, dim: int, dim_out: int) -> nn.Module:
        if self.config.cross_embed_downsample:
            return CrossEmbed(dim, dim_out, self.config.cross_embed_downsample_kernel_sizes, stride=2)
        return Downsample(dim, dim_out)

    def upsample(self, dim: int, dim_out: int) -> nn.Module:
        return (PixelShuffleUpsample if self.config.pixel_shuffle_upsample else NearestUpsample)(dim, dim_out)
