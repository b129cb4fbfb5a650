"""A decoded image, and how any picture is fitted to a model's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms import functional as tv

from .geometry import Geometry
from .undecodable import Undecodable


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """pixels: uint8 [3, h, w] of the model's input size. width, height: the original size, before resizing."""

    pixels: torch.Tensor
    width: int
    height: int


def refuse_too_large(height: int, width: int, wanted: Geometry, max_pixels: int) -> Undecodable | None:
    """A reject for too many pixels; enlarging the short side of a thin image can also exceed the limit."""
    if width * height > max_pixels:
        return Undecodable("image_too_large", f"{width}×{height} is more than {max_pixels} pixels")
    if wanted.resized[0] * wanted.resized[1] > max_pixels:
        return Undecodable("image_too_large", f"{width}×{height}, resized, is more than {max_pixels} pixels")
    return None


def fitted(image: Image.Image, wanted: Geometry) -> Image.Image:
    """The image resized, padded and cropped, in its own mode."""
    resized = tv.resize(image, list(wanted.resized), wanted.interpolation)
    if any(wanted.padding):
        resized = tv.pad(resized, list(wanted.padding), fill=wanted.fill)
    cropped: Image.Image = tv.center_crop(resized, list(wanted.crop))
    return cropped
