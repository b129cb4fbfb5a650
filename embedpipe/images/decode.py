"""Image bytes → uint8 RGB pixels of the model's input size, equal to open_clip's evaluation transform."""

from __future__ import annotations

import importlib.util
import io
import struct
from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import functional as tv

from ..clip_model.encoder_card import ImageRules, PreprocessSpec
from . import jpeg
from .geometry import Geometry, geometry

DECODERS = ("exact", "fast", "pillow")
DEFAULT_MAX_PIXELS = 100_000_000
# As in open_clip's transform: `convert("RGB")` drops alpha, and EXIF and colour profiles are ignored.
RULES = ImageRules(transparency="ignored", orientation="ignored", colour_profile="ignored")

# embedpipe's own pixel limit applies (`max_pixels`, a reject with a reason); Pillow's raises or warns.
Image.MAX_IMAGE_PIXELS = None

# Not every format of Pillow: EPS would start Ghostscript.
_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO")
if importlib.util.find_spec("PIL.AvifImagePlugin") is not None:  # in newer versions of Pillow
    _FORMATS = (*_FORMATS, "AVIF")


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """pixels: uint8 [3, h, w] of the model's input size. width, height: the original size, before resizing."""

    pixels: torch.Tensor
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Why an image could not be decoded; `error_class` is one of `types.REJECT_CLASSES`."""

    error_class: str
    message: str


def decode(
    data: bytes, spec: PreprocessSpec, max_pixels: int = DEFAULT_MAX_PIXELS, how: str = "exact"
) -> DecodedImage | Undecodable:
    """Decode, convert to RGB, resize and crop. The pixel limit is checked from the header, before decoding.

    how: `exact` is open_clip's own transform (JPEGs within a rounding of it, see `jpeg`); `fast` decodes large JPEGs at
    a fraction of their size; `pillow` is open_clip's transform to the bit.
    """
    size = jpeg.size_of(data) if how != "pillow" else None
    if size is not None:
        wanted = geometry(*size, spec)
        too_large = _too_large(*size, wanted, max_pixels)
        if too_large is not None:
            return too_large
        pixels = jpeg.decode_jpeg(data, wanted, scaled=how == "fast")
        if pixels is not None:
            return DecodedImage(pixels, width=size[1], height=size[0])
    return _decode_with_pillow(data, spec, max_pixels)


def _decode_with_pillow(data: bytes, spec: PreprocessSpec, max_pixels: int) -> DecodedImage | Undecodable:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            wanted = geometry(height, width, spec)
            too_large = _too_large(height, width, wanted, max_pixels)
            if too_large is not None:
                return too_large
            # open_clip converts to RGB last, so palettes and alpha channels are resized unconverted here, too.
            pixels = tv.pil_to_tensor(_fit(image, wanted).convert("RGB"))
    except UnidentifiedImageError:
        return Undecodable("image_undecodable", "no image format that Pillow knows")
    # Pillow's plugins raise these for damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, MemoryError) as problem:
        return Undecodable("image_undecodable", f"{type(problem).__name__}: {problem}"[:300])
    return DecodedImage(pixels, width, height)


def _too_large(height: int, width: int, wanted: Geometry, max_pixels: int) -> Undecodable | None:
    """A reject for too many pixels; enlarging the short side of a thin image can also exceed the limit."""
    if width * height > max_pixels:
        return Undecodable("image_too_large", f"{width}×{height} is more than {max_pixels} pixels")
    if wanted.resized[0] * wanted.resized[1] > max_pixels:
        return Undecodable("image_too_large", f"{width}×{height}, resized, is more than {max_pixels} pixels")
    return None


def _fit(image: Image.Image, wanted: Geometry) -> Image.Image:
    fitted = tv.resize(image, list(wanted.resized), wanted.interpolation)
    if any(wanted.padding):
        fitted = tv.pad(fitted, list(wanted.padding), fill=wanted.fill)
    cropped: Image.Image = tv.center_crop(fitted, list(wanted.crop))
    return cropped
