"""Image bytes → uint8 RGB pixels of the model's size, as open_clip's own evaluation transform makes them."""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

from ..card import PreprocessSpec

DEFAULT_MAX_PIXELS = 100_000_000

# The pixel limit is ours (`max_pixels`, a reject with a reason); Pillow's own would be an exception or a warning.
Image.MAX_IMAGE_PIXELS = None

# Not all that Pillow opens: for EPS it would start Ghostscript.
_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO")
if importlib.util.find_spec("PIL.AvifImagePlugin") is not None:  # newer Pillows have it
    _FORMATS = (*_FORMATS, "AVIF")


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """pixels: uint8 [3, h, w] of the model's input size. width, height: of the stored image, before resizing."""

    pixels: torch.Tensor
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Why an image gave no pixels; `error_class` is one of `types.REJECT_CLASSES`."""

    error_class: str
    message: str


def decode(data: bytes, spec: PreprocessSpec, max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedImage | Undecodable:
    """Decode, convert to RGB, resize and crop. The pixel limit is checked from the header, before decoding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata; the pixels are what counts
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    return Undecodable("image_too_large", f"{width}×{height} is more than {max_pixels} pixels")
                if _resized_pixels(image, spec) > max_pixels:
                    return Undecodable(
                        "image_too_large", f"{width}×{height}, resized, is more than {max_pixels} pixels"
                    )
                pixels = tv.pil_to_tensor(fit(image, spec).convert("RGB"))
    except UnidentifiedImageError:
        return Undecodable("image_undecodable", "no image format that Pillow knows")
    # Pillow's plugins let these through on damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, MemoryError) as problem:
        return Undecodable("image_undecodable", f"{type(problem).__name__}: {problem}"[:300])
    return DecodedImage(pixels, width, height)


def fit(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize an image of any mode to the model's input size in the way its configuration says.

    open_clip resizes before it converts to RGB, so palettes and alpha channels are treated here as they are there.
    """
    height, width = spec.size
    bilinear = spec.interpolation == "bilinear"
    interpolation = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
    ratios = (image.height / height, image.width / width)
    fitted: Image.Image
    if spec.resize_mode == "squash":
        fitted = tv.resize(image, [height, width], interpolation)
    elif spec.resize_mode == "longest":
        fitted = tv.resize(image, _scaled(image, max(ratios)), interpolation)
        fitted = tv.center_crop(_padded(fitted, height, width, spec.fill_color), [height, width])
    elif height == width:
        fitted = tv.center_crop(tv.resize(image, [height], interpolation), [height, width])
    else:
        # For inputs that are not square open_clip knows bicubic only.
        fitted = tv.resize(image, _scaled(image, min(ratios)), InterpolationMode.BICUBIC)
        fitted = tv.center_crop(fitted, [height, width])
    return fitted


def _resized_pixels(image: Image.Image, spec: PreprocessSpec) -> float:
    """Pixels between resizing and cropping: a thin line of an image, its short side enlarged, can be huge."""
    if spec.resize_mode != "shortest":
        return 0
    height, width = spec.size
    ratio = min(image.height / height, image.width / width)
    return image.height / ratio * image.width / ratio


def _scaled(image: Image.Image, ratio: float) -> list[int]:
    return [max(1, round(image.height / ratio)), max(1, round(image.width / ratio))]


def _padded(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    """Pad to at least height × width, the odd pixel on the right and at the bottom."""
    across, down = max(0, width - image.width), max(0, height - image.height)
    if not (across or down):
        return image
    padded: Image.Image = tv.pad(image, [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2], fill=fill)
    return padded
