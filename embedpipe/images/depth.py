"""Channels of sixteen bits, 32-bit integers and floats → eight bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Tags of TIFF.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 284, 339
_UNSIGNED, _RAW, _WHITE_IS_ZERO, _SEPARATE = 1, 1, 0, 2


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than eight bits. Pillow itself reduces several such channels."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def misread(image: Image.Image) -> str | None:
    """What Pillow would read as other pixels without a word: deep channels in planes of their own, uncompressed."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == _SEPARATE and tags.get(_COMPRESSION, _RAW) == _RAW:
        bits = tags.get(_BITS_PER_SAMPLE, (8,))
        if len(bits) > 1 and max(bits) > 8:
            return f"TIFF: uncompressed planes of {max(bits)} bits"
    return None


def scaled_to_eight_bits(image: Image.Image) -> Image.Image:
    """A deep image in mode L, or LA if it names a transparent value.

    Sixteen bits (twelve in some TIFFs) keep their upper eight. Of 32 bits the range is not known: the values are taken
    for the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds them all, else from the lowest to the
    highest. NaNs are black; TIFFs in which 0 is white, which Pillow inverts with eight bits alone, are inverted.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode in ("F", "I") and image.format == "TIFF":
        if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
            values = values.view(np.uint32)
        made = _stretched(values)
    else:
        bits = min(16, int(tags.get(_BITS_PER_SAMPLE, (16,))[0]))
        made = (values.clip(0, 65_535).astype(np.uint16) >> (max(8, bits) - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        made = 255 - made
    grey = Image.fromarray(made)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    return grey


def _stretched(values: np.ndarray) -> np.ndarray:
    is_float = values.dtype.kind == "f"
    lowest, highest = _extremes(values[np.isfinite(values)] if is_float else values)
    if lowest < 0 or highest > 65_535:
        start, span = lowest, highest - lowest
    else:
        tops = (1.0, 255.0, 65_535.0) if is_float else (255.0, 65_535.0)
        start, span = 0.0, next(top for top in tops if highest <= top)
    made = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # one at a time: the picture in double precision may be large
        part = (line.astype(np.float64) - start) * (255 / (span or 1.0))
        made[row] = np.nan_to_num(part, nan=0.0, posinf=255.0, neginf=0.0).round().clip(0, 255)
    return made


def _extremes(values: np.ndarray) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
