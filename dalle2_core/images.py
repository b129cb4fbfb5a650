"""Pixels: [b, c, h, w] in [0, 1] outside of the models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.errors import ShapeError
from dalle2_core.inputs import finite_where_seen
from dalle2_core.rng import RNG, integers


def as_floats(images: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1]; floats as they are, in float32 or wider."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.to(torch.promote_types(images.dtype, torch.float32))


def resized(images: Tensor, size: int) -> Tensor:
    """Bicubic, antialiased when it gets smaller; [b, c, size, size], in [0, 1]."""
    if images.shape[-2:] == (size, size):
        return images
    # The filter's negative lobes overshoot at edges.
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0.0, 1.0)


def averaged(images: Tensor, size: int) -> Tensor:
    """Each pixel the mean of exactly those that it covers: nothing of a neighbour bleeds in. [b, c, size, size]."""
    return images if images.shape[-2:] == (size, size) else F.adaptive_avg_pool2d(images, size)


def random_crops(size: int, *images: Tensor, draws: RNG) -> list[Tensor]:
    """A square of `size` pixels of each row, at the same place in all `images`, which are equally large."""
    first = images[0]
    rows, _, height, width = first.shape
    device, side = first.device, torch.arange(size, device=first.device)
    top, left = (integers(0, extent - size + 1, (rows,), draws, device)[:, None] for extent in (height, width))
    row = torch.arange(rows, device=device)[:, None, None, None]
    down, across = (top + side)[:, None, :, None], (left + side)[:, None, None, :]
    return [it[row, torch.arange(it.shape[1], device=device)[:, None, None], down, across] for it in images]


def check_images(images: Tensor, channels: int, smallest: int, what: str = "images") -> None:
    """Raises ShapeError if images are not [b, channels, h, w], square, large enough and finite."""
    if images.ndim != 4 or images.shape[1] != channels or not len(images):
        raise ShapeError(f"{what} {tuple(images.shape)} must be [b, {channels}, h, w], one row or more")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ShapeError(f"{what} are {images.dtype}; give uint8, or floats in [0, 1]")
    height, width = images.shape[-2:]
    if height != width:
        raise ShapeError(f"{what} of {height} x {width} pixels are not square; crop them first")
    if height < smallest:
        raise ShapeError(f"{what} of {height} pixels are smaller than the stage's {smallest}")
    if images.is_floating_point() and not finite_where_seen(images):
        raise ShapeError(f"{what} hold NaN or infinity")
