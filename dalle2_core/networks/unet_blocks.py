"""Parts of the U-Net: convolutions, blocks, and changes of size. All take and give [b, c, h, w]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.networks.fused_norm import norm_scale_silu
from dalle2_core.networks.image_attention import CrossAttention
from dalle2_core.networks.recompute import recomputed_in_backward


@dataclass(frozen=True, slots=True)
class Context:
    """What cross-attention attends to. tokens: [b, k, d]. mask: [b, k] bool, False hides a token; None hides none."""

    tokens: Tensor
    mask: Tensor | None = None


class WeightStandardizedConv2d(nn.Conv2d):
    """Each output channel's weights have mean 0 and variance 1. Qiao et al. 1903.10520, equation 3."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-5).rsqrt()
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class Block(nn.Module):
    """Convolution, group norm, scale and shift, SiLU."""

    def __init__(self, dim: int, dim_out: int, groups: int, standardized: bool = False) -> None:
        super().__init__()
        convolution = WeightStandardizedConv2d if standardized else nn.Conv2d
        self.project = convolution(dim, dim_out, 3, padding=1)
        self.norm = nn.GroupNorm(groups, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_recipe(x, None)[0]

    def with_recipe(self, x: Tensor, scale_shift: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
        """The output, and what makes it again. scale_shift: [b, 2 dim_out], or None for neither."""
        return norm_scale_silu(self.project(x), self.norm, scale_shift)


class ResnetBlock(nn.Module):
    """Two blocks with a residual connection; the first is told the time, and between them may be cross-attention."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        time_dim: int,
        *,
        groups: int,
        cond_dim: int | None = None,
        standardized: bool = False,
        cosine_sim: bool = False,
    ) -> None:
        """cond_dim: width of the tokens to attend to; None for no cross-attention."""
        super().__init__()
        self.time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * dim_out))
        self.block1 = Block(dim, dim_out, groups, standardized)
        self.block2 = Block(dim_out, dim_out, groups, standardized)
        self.cross_attn = None if cond_dim is None else CrossAttention(dim_out, cond_dim, cosine_sim)
        self.res_conv = nn.Identity() if dim == dim_out else nn.Conv2d(dim, dim_out, 1)

    def forward(self, x: Tensor, time: Tensor, context: Context | None = None, sparing: bool = True) -> Tensor:
        """time: [b, time_dim]. sparing: make the first block's output again in the backward pass."""
        hidden, again = self.block1.with_recipe(x, self.time_mlp(time))
        with recomputed_in_backward(hidden, again) if sparing else nullcontext():
            if self.cross_attn is not None:
                assert context is not None
                hidden = hidden + self.cross_attn(hidden, context.tokens, context.mask)
            hidden = self.block2(hidden)
        out: Tensor = hidden + self.res_conv(x)
        return out


class CrossEmbed(nn.Module):
    """Convolutions with kernels of several sizes side by side: half of the channels to the smallest, and so on."""

    def __init__(self, dim: int, dim_out: int, kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        sizes = sorted(kernel_sizes)
        widths = [dim_out // 2**place for place in range(1, len(sizes))]
        widths.append(dim_out - sum(widths))
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, width, size, stride=stride, padding=(size - stride) // 2)
            for size, width in zip(sizes, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=1)


class Downsample(nn.Module):
    """Halve the size: four pixels become channels, then a 1x1 convolution. Sunkara & Luo 2208.03641."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * dim, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # The same as pixel_unshuffle and a 1x1 convolution, and no shuffled copy is made or kept.
        weight = self.conv.weight.view(self.conv.out_channels, -1, 2, 2)
        return F.conv2d(x, weight, self.conv.bias, stride=2)


class PixelShuffleUpsample(nn.Module):
    """Double the size: a 1x1 convolution to four times the channels, which become pixels.

    The four begin alike, so that no checkerboard is there to be unlearnt. Aitken et al. 1707.02937.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 4 * dim_out, 1)
        first = torch.empty(dim_out, dim, 1, 1)
        nn.init.kaiming_uniform_(first)
        with torch.no_grad():
            self.conv.weight.copy_(first.repeat_interleave(4, dim=0))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.silu(self.conv(x)), 2)


class NearestUpsample(nn.Module):
    """Double the size by repeating pixels, then a convolution."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class UpsampleCombiner(nn.Module):
    """Puts all resolutions' outputs, scaled to one size, beside the last one's. Qin et al. 2005.09007 (U²-Net)."""

    def __init__(self, widths: Sequence[int], dim: int, groups: int) -> None:
        super().__init__()
        self.fmap_convs = nn.ModuleList(Block(width, dim, groups) for width in widths)

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """[b, c, h, w] → [b, c + dim * len(outputs), h, w]."""
        size = x.shape[-2:]
        resized = [F.interpolate(out, size, mode="bilinear", antialias=True) for out in outputs]
        blocks = [block(out) for block, out in zip(self.fmap_convs, resized, strict=True)]
        return torch.cat((x, *blocks), dim=1)
