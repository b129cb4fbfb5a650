"""Image bytes → uint8 RGB pixels of the model's input size: `open` and then open_clip's resizing and cropping."""

from __future__ import annotations

from torchvision.transforms import functional as tv

from ..clip_model.encoder_card import OPEN_CLIP_RULES, ImageRules, PreprocessSpec
from . import jpeg, jpeg_data
from .as_open_clip import decode_as_open_clip
from .colour import is_srgb
from .decoded import DecodedImage, fitted, refuse_too_large
from .geometry import geometry
from .open import DEFAULT_MAX_PIXELS, damage, read_picture
from .rules import image_rules
from .undecodable import Undecodable

DECODERS = ("exact", "fast", "pillow")

__all__ = ["DECODERS", "DEFAULT_MAX_PIXELS", "DecodedImage", "Undecodable", "decode"]


def decode(
    data: bytes,
    spec: PreprocessSpec,
    rules: ImageRules | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    how: str = "exact",
) -> DecodedImage | Undecodable:
    """Decode, convert by the rules, resize and crop. The pixel limit is checked from the header, before decoding.

    rules: None for those of new data sets, with a white background. how: `exact` is open_clip's own resizing (JPEGs
    within a rounding of it, see `jpeg`); `fast` decodes large JPEGs at a fraction of their size; `pillow` is
    open_clip's resizing to the bit. Whatever a decoder raises for these bytes is returned, never raised.
    """
    try:
        if rules == OPEN_CLIP_RULES:
            return decode_as_open_clip(data, spec, max_pixels, how)
        plain = _plain_jpeg(data, spec, max_pixels, how == "fast") if how != "pillow" else None
        return plain or _decode_any(data, spec, rules or image_rules(), max_pixels)
    except Exception as problem:
        return damage(problem)


def _plain_jpeg(data: bytes, spec: PreprocessSpec, max_pixels: int, scaled: bool) -> DecodedImage | Undecodable | None:
    """Of a JPEG whose pixels need no more than turning; None for other data."""
    header = jpeg_data.read_header(data)
    if header is None or header.orientation is None or header.colorspace not in jpeg.COLORSPACES:
        return None
    if not is_srgb(header.profile):
        return None
    lying = header.orientation >= 5
    height, width = (header.width, header.height) if lying else (header.height, header.width)
    wanted = geometry(height, width, spec)
    refused = refuse_too_large(height, width, wanted, max_pixels)
    if refused is not None:
        return refused
    least = jpeg.least_size(wanted, lying) if scaled else (0, 0)
    found = jpeg_data.decode_strictly(header.data, "RGB", *least)
    if isinstance(found, Undecodable):
        return found
    return DecodedImage(jpeg.fitted_pixels(jpeg.turned(found, header.orientation), wanted), width, height)


def _decode_any(data: bytes, spec: PreprocessSpec, rules: ImageRules, max_pixels: int) -> DecodedImage | Undecodable:
    picture = read_picture(data, max_pixels)
    if isinstance(picture, Undecodable):
        return picture
    wanted = geometry(picture.height, picture.width, spec)
    refused = refuse_too_large(picture.height, picture.width, wanted, max_pixels)
    if refused is not None:
        return refused
    image = fitted(picture.upright(rules), wanted)
    return DecodedImage(tv.pil_to_tensor(image), picture.width, picture.height)
