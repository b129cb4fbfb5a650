"""JPEG → pixels without Pillow: about twice as fast, and equal up to rounding.

libjpeg-turbo decodes, as it does inside Pillow (the decoded pixels are equal); torch's antialiased resize works on
uint8. Compared with Pillow's resize, some values differ by 1 of 255 (1% of a photograph's, more where the resize is
slight) and one in 100,000 by 2.
"""

from __future__ import annotations

import simplejpeg
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as tv

from .geometry import Geometry

# Pillow handles everything else (CMYK and its inverted variants), and whatever these two libraries reject.
_COLORSPACES = frozenset({"YCbCr", "RGB", "Gray"})
_START = b"\xff\xd8\xff"

# "fast" decodes to at least twice the final size.
_SPARE = 2


def size_of(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a JPEG, if this module can decode it, else None."""
    if not data.startswith(_START):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colorspace in _COLORSPACES else None


def decode_jpeg(data: bytes, wanted: Geometry, scaled: bool) -> torch.Tensor | None:
    """uint8 [3, h, w] of the crop size in `wanted`, or None for damaged data: Pillow then reports the error.

    scaled: decode to a fraction of the size if that is still twice the needed size: faster, less exact.
    """
    height, width = wanted.resized
    try:
        array = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=_SPARE * height if scaled else 0,
            min_width=_SPARE * width if scaled else 0,
            strict=True,
        )
    except ValueError:
        return None
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None]
    if pixels.shape[2:] != wanted.resized:
        pixels = F.interpolate(pixels, wanted.resized, mode=wanted.interpolation.value, antialias=True)
    cropped: torch.Tensor = tv.center_crop(_padded(pixels[0], wanted), list(wanted.crop))
    return cropped.contiguous()


def _padded(pixels: torch.Tensor, wanted: Geometry) -> torch.Tensor:
    if not any(wanted.padding):
        return pixels
    padded: torch.Tensor = tv.pad(pixels, list(wanted.padding), fill=wanted.fill)
    return padded
