"""What a U-Net is. The names are DALLE2-pytorch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from dalle2_core.errors import ConfigError

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class UnetConfig:
    """Sizes and parts of the network. A setting "per resolution" is one value, or one for each of `dim_mults`.

    dim: width at the first resolution. dim_mults: widths of the resolutions after it, as multiples of `dim`; the
    size is halved between two of them. init_dim: width of the first convolution's output; None takes `dim`.
    channels: of the image. channels_out: of the output; None takes `channels`.
    image_embed_dim: width of the image embedding. cond_on_image_embeds: whether it is used; None means: where
    image_embed_dim is given (in a `Decoder`: and the stage is the first).
    num_image_tokens, num_time_tokens: tokens that the image embedding and the time become, `cond_dim` wide (None
    takes `dim`). add_image_embeds_to_time: add the image embedding to the time's vector besides.
    cond_on_text_encodings: read text tokens `text_embed_dim` wide, at most `max_text_len`, at the lowest resolution.
    lowres_cond: the network also sees a smaller image, scaled up. lowres_noise_cond: and how noisy that one is.
    self_cond: the network also sees an earlier estimate of the image.
    self_attn: self-attention, per resolution; sparse_attn: linear attention at the other ones. attend_at_middle:
    self-attention at the lowest resolution. attn_heads, attn_dim_head: of these.
    cosine_sim_self_attn, cosine_sim_cross_attn: compare by cosine instead of by dot product.
    init_cross_embed: the first convolution has kernels of several sizes (init_cross_embed_kernel_sizes), not one of
    init_conv_kernel_size. cross_embed_downsample: the same where the size is halved.
    num_resnet_blocks, resnet_groups: blocks and groups of their norms, per resolution.
    resnet_weight_standardization: standardise the blocks' convolution weights.
    memory_efficient: halve the size before a resolution's blocks instead of after them.
    scale_skip_connection: scale skip connections by 1/√2. pixel_shuffle_upsample: double the size by moving channels
    into pixels, else by repeating pixels. combine_upsample_fmaps: the last block sees all resolutions' outputs.
    final_conv_kernel_size: of the last convolution.
    patch_size: squares of that many pixels a side become channels before the first convolution, and pixels again after
    the last one, so that all resolutions are that much smaller; dim_mults are of the first of them.
    checkpoint_during_training: compute blocks again in the backward pass instead of keeping what they held.
    """

    dim: int
    image_embed_dim: int | None = None
    text_embed_dim: int | None = None
    cond_dim: int | None = None
    num_image_tokens: int = 4
    num_time_tokens: int = 2
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    channels_out: int | None = None
    self_attn: bool | tuple[bool, ...] = False
    attn_dim_head: int = 32
    attn_heads: int = 16
    lowres_cond: bool = False
    lowres_noise_cond: bool = False
    self_cond: bool = False
    sparse_attn: bool = False
    cosine_sim_cross_attn: bool = False
    cosine_sim_self_attn: bool = False
    attend_at_middle: bool = True
    cond_on_text_encodings: bool = False
    max_text_len: int = 256
    cond_on_image_embeds: bool | None = None
    add_image_embeds_to_time: bool = True
    init_dim: int | None = None
    init_conv_kernel_size: int = 7
    resnet_groups: int | tuple[int, ...] = 8
    resnet_weight_standardization: bool = False
    num_resnet_blocks: int | tuple[int, ...] = 2
    init_cross_embed: bool = True
    init_cross_embed_kernel_sizes: tuple[int, ...] = (3, 7, 15)
    cross_embed_downsample: bool = False
    cross_embed_downsample_kernel_sizes: tuple[int, ...] = (2, 4)
    memory_efficient: bool = False
    scale_skip_connection: bool = False
    pixel_shuffle_upsample: bool = True
    final_conv_kernel_size: int = 1
    combine_upsample_fmaps: bool = False
    checkpoint_during_training: bool = False
    patch_size: int = 1

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_conditions()
        for name, kind in (("self_attn", bool), ("resnet_groups", int), ("num_resnet_blocks", int)):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.dim_mults):
                raise ConfigError(
                    f"unet.{name} has {len(value)} values for {len(self.dim_mults)} resolutions (dim_mults); "
                    f"give one {kind.__name__}, or one for each"
                )
        for groups, width in zip(self.groups_by_resolution, self.widths[1:], strict=True):
            for wide in (width, self.dim, self.first_width):
                if groups < 1 or wide % groups:
                    raise ConfigError(
                        f"unet: a width of {wide} channels does not divide into resnet_groups={groups}; "
                        "choose dim, init_dim and dim_mults that do"
                    )

    def _check_counts(self) -> None:
        if not self.dim_mults:
            raise ConfigError("unet.dim_mults is empty; give the width of one resolution or more")
        names = (
            "dim",
            "num_image_tokens",
            "num_time_tokens",
            "channels",
            "attn_dim_head",
            "attn_heads",
            "max_text_len",
            "patch_size",
        )
        optional = ("image_embed_dim", "text_embed_dim", "cond_dim", "channels_out", "init_dim")
        for name in (*names, *optional):
            value = getattr(self, name)
            if not (value is None and name in optional) and value < 1:
                raise ConfigError(f"unet.{name} is {value}; it must be 1 or more")
        if min(self.dim_mults) < 1 or min(self.blocks_by_resolution) < 0:
            raise ConfigError("unet.dim_mults must be 1 or more, unet.num_resnet_blocks 0 or more, at every resolution")
        odd = (self.init_conv_kernel_size, self.final_conv_kernel_size, *self.init_cross_embed_kernel_sizes)
        if any(size % 2 == 0 for size in odd):
            raise ConfigError(f"unet: the first and last convolutions' kernel sizes {odd} must be odd")
        if any(size % 2 for size in self.cross_embed_downsample_kernel_sizes):
            raise ConfigError("unet.cross_embed_downsample_kernel_sizes must be even: they halve the size")

    def require_widths(self) -> None:
        """Raise ConfigError where a condition's width is missing: a recipe may leave that to the data."""
        if self.cond_on_image_embeds and self.image_embed_dim is None:
            raise ConfigError("unet.cond_on_image_embeds needs image_embed_dim, the width of the image embeddings")
        if self.cond_on_text_encodings and self.text_embed_dim is None:
            raise ConfigError("unet.cond_on_text_encodings needs text_embed_dim, the width of the text tokens")

    def _check_conditions(self) -> None:
        if self.lowres_noise_cond and not self.lowres_cond:
            raise ConfigError("unet.lowres_noise_cond says how noisy the smaller image is; it needs lowres_cond")

    @property
    def sees_image_embed(self) -> bool:
        """Whether the image embedding is a condition, None resolved."""
        if self.cond_on_image_embeds is None:
            return self.image_embed_dim is not None
        return self.cond_on_image_embeds

    @property
    def first_width(self) -> int:
        """Channels after the first convolution."""
        return self.init_dim or self.dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after the first convolution, then after each resolution."""
        return (self.first_width, *(self.dim * mult for mult in self.dim_mults))

    @property
    def context_width(self) -> int:
        """Channels of a condition's token."""
        return self.cond_dim or self.dim

    @property
    def output_channels(self) -> int:
        return self.channels_out or self.channels

    @property
    def size_multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        halvings = len(self.dim_mults) if self.memory_efficient else len(self.dim_mults) - 1
        return int(self.patch_size * 2**halvings)

    @property
    def groups_by_resolution(self) -> tuple[int, ...]:
        return _for_each(self.resnet_groups, len(self.dim_mults))

    @property
    def blocks_by_resolution(self) -> tuple[int, ...]:
        return _for_each(self.num_resnet_blocks, len(self.dim_mults))

    @property
    def self_attn_by_resolution(self) -> tuple[bool, ...]:
        return _for_each(self.self_attn, len(self.dim_mults))


def _for_each(value: V | tuple[V, ...], count: int) -> tuple[V, ...]:
    return value if isinstance(value, tuple) else (value,) * count
