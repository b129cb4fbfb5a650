"""Resize, pad and centre-crop geometry: from an image's size to the model's input size.

The arithmetic is open_clip's (and through it torchvision's and timm's), including its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchvision.transforms.functional import InterpolationMode

from ..clip_model.encoder_card import PreprocessSpec


@dataclass(frozen=True, slots=True)
class Geometry:
    """resized: (height, width) after resizing, before the crop. padding: left, top, right, bottom, filled with `fill`.

    crop: (height, width) of the centre crop, the model's input size.
    """

    resized: tuple[int, int]
    padding: tuple[int, int, int, int]
    crop: tuple[int, int]
    interpolation: InterpolationMode
    fill: int


def geometry(height: int, width: int, spec: PreprocessSpec) -> Geometry:
    """The geometry for an image of `height` × `width` pixels."""
    target = spec.size
    bilinear = spec.interpolation == "bilinear"
    interpolation = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
    ratios = (height / target[0], width / target[1])
    if spec.resize_mode == "squash":
        resized = target
    elif spec.resize_mode == "longest":
        resized = _scaled(height, width, max(ratios))
    elif target[0] == target[1]:
        resized = _shorter_side(height, width, target[0])
    else:
        # For non-square inputs open_clip supports only bicubic.
        resized, interpolation = _scaled(height, width, min(ratios)), InterpolationMode.BICUBIC
    down, across = max(0, target[0] - resized[0]), max(0, target[1] - resized[1])
    padding = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
    return Geometry(resized, padding, target, interpolation, spec.fill_color if spec.resize_mode == "longest" else 0)


def _scaled(height: int, width: int, ratio: float) -> tuple[int, int]:
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)
