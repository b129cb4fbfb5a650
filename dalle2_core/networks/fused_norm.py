"""Group norm, scale, shift and SiLU as one step that keeps one feature map for its backward pass instead of four."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def norm_scale_silu(x: Tensor, norm: nn.GroupNorm, scale_shift: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
    """silu(norm(x) (1 + scale) + shift), and what makes it again from what is kept for its backward pass anyway.

    x: [b, c, h, w]. scale_shift: [b, 2 c], or None for neither. Gradients once only: it cannot be differentiated twice.
    """
    gain, offset = norm.weight[None], norm.bias[None]
    if scale_shift is None:
        gain, offset = gain.expand(len(x), -1), offset.expand(len(x), -1)
    else:
        scale, shift = scale_shift.chunk(2, dim=1)
        gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
    gain, offset = gain.to(x.dtype), offset.to(x.dtype)
    out, normed = _NormAffineSilu.apply(x, gain, offset, norm.num_groups, norm.eps)
    return out, partial(_affine_silu, normed, gain.detach(), offset.detach())


def _affine_silu(normed: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return F.silu(torch.addcmul(offset[:, :, None, None], normed, gain[:, :, None, None]), inplace=True)


class _NormAffineSilu(torch.autograd.Function):
    """x [b, c, h, w], gain [b, c], offset [b, c] → silu(group_norm(x) gain + offset), group_norm(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        normed, rstd = _group_norm(x, groups, eps)
        ctx.save_for_backward(normed, gain, offset, rstd)
        ctx.mark_non_differentiable(normed)
        return _affine_silu(normed, gain, offset), normed

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        normed, gain, offset, rstd = ctx.saved_tensors
        groups = rstd.shape[1]
        affine = torch.addcmul(offset[:, :, None, None], normed, gain[:, :, None, None])
        grad_affine = torch.ops.aten.silu_backward(grad, affine)
        grad_offset = grad_affine.sum(dim=(2, 3))
        grad_gain = torch.mul(grad_affine, normed, out=affine).sum(dim=(2, 3))

        # Group norm: d x = rstd (d n - mean(d n) - n mean(d n · n)), the means over a group, n the normed values.
        count = normed[0].numel() // groups
        mean = _by_group(gain * grad_offset, groups) / count
        product = _by_group(gain * grad_gain, groups) / count
        rstd_c = _by_channel(rstd.to(gain.dtype), gain)
        slope = -rstd_c * _by_channel(product, gain)
        level = -rstd_c * _by_channel(mean, gain)
        grad_x = torch.addcmul(level[:, :, None, None], normed, slope[:, :, None, None])
        grad_x.addcmul_(grad_affine, (rstd_c * gain)[:, :, None, None])
        return grad_x, grad_gain, grad_offset, None, None


def _group_norm(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Normed values in the layout and dtype of x [b, c, h, w], and one over each group's deviation [b, groups].

    On a GPU the statistics are float32, of a view by groups: torch's own kernel demands plain contiguous maps there
    before torch 2.14, copies from and to channels last after it, and gives statistics in the dtype of x.
    """
    rows, channels, height, width = x.shape
    if _torchs_own_is_right(x):
        normed, _, rstd = torch.native_group_norm(x, None, None, rows, channels, height * width, groups, eps)
        return normed, rstd
    by_group = x.view(rows, groups, channels // groups, height, width)
    variance, mean = torch.var_mean(by_group.float(), dim=(2, 3, 4), correction=0, keepdim=True)
    rstd = (variance + eps).rsqrt()
    return ((by_group - mean) * rstd).to(x.dtype).view(x.shape), rstd.view(rows, groups)


def _torchs_own_is_right(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _by_group(values: Tensor, groups: int) -> Tensor:
    return values.view(len(values), groups, -1).sum(dim=2)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """[b, groups] → [b, c], each group's value for all its channels."""
    return values.repeat_interleave(like.shape[1] // values.shape[1], dim=1)
