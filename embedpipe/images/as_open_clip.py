"""Decode as open_clip's own transform does: alpha is dropped, orientation and colour profiles are ignored.

For data sets that were begun so, which have to go on with the same pixels, and for other tools' data.
"""

from __future__ import annotations

import importlib.util
import io
import struct

from PIL import Image, UnidentifiedImageError
from torchvision.transforms import functional as tv

from ..clip_model.encoder_card import PreprocessSpec
from . import jpeg
from .decoded import DecodedImage, fitted, refuse_too_large
from .geometry import geometry
from .undecodable import Undecodable, of_problem

_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO")
if importlib.util.find_spec("PIL.AvifImagePlugin") is not None:  # in newer versions of Pillow
    _FORMATS = (*_FORMATS, "AVIF")


def decode_as_open_clip(data: bytes, spec: PreprocessSpec, max_pixels: int, how: str) -> DecodedImage | Undecodable:
    """See `decode.decode`."""
    size = jpeg.size_of(data) if how != "pillow" else None
    if size is not None:
        wanted = geometry(*size, spec)
        refused = refuse_too_large(*size, wanted, max_pixels)
        if refused is not None:
            return refused
        pixels = jpeg.decode_jpeg(data, wanted, scaled=how == "fast")
        if pixels is not None:
            return DecodedImage(pixels, width=size[1], height=size[0])
    return _with_pillow(data, spec, max_pixels)


def _with_pillow(data: bytes, spec: PreprocessSpec, max_pixels: int) -> DecodedImage | Undecodable:
    try:
        with _opened(data) as image:
            width, height = image.size
            wanted = geometry(height, width, spec)
            refused = refuse_too_large(height, width, wanted, max_pixels)
            if refused is not None:
                return refused
            # open_clip converts to RGB last, so palettes and alpha channels are resized unconverted here, too.
            pixels = tv.pil_to_tensor(fitted(image, wanted).convert("RGB"))
    except UnidentifiedImageError:
        return Undecodable("image_undecodable", "no image format that Pillow knows")
    except Image.DecompressionBombError as problem:
        return of_problem("image_too_large", problem)
    except Exception as problem:
        return of_problem("image_undecodable", problem)
    return DecodedImage(pixels, width, height)


def _opened(data: bytes) -> Image.Image:
    """As `Image.open` with these formats, without its limit of pixels, which the whole process shares."""
    Image.init()
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]) is True:
            try:
                return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    raise UnidentifiedImageError
