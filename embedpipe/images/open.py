"""Image bytes → an upright sRGB picture of eight bits: the one way in which embedpipe opens pictures.

Formats are those of `formats`, found by content. Of an animation or a file of several pictures the first counts.
Imports no torch: download processes do without.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from PIL import Image

from ..clip_model.encoder_card import ImageRules
from . import jpeg_data, png_chunks
from .colour import is_srgb, to_srgb
from .depth import is_deep, misread, scaled_to_eight_bits
from .formats import SNIFF_BYTES, format_of, why_not_read
from .jpeg_data import JpegHeader
from .rules import background_rgb, image_rules
from .undecodable import Undecodable, of_problem

DEFAULT_MAX_PIXELS = 100_000_000

_TAG = 0x0112
# EXIF's eight orientations, and the transform that undoes each.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPEN_COLORSPACES = frozenset({"YCbCr", "RGB", "Gray"})


def open_upright_srgb(
    data: bytes, rules: ImageRules | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image.Image | Undecodable:
    """The picture in mode RGB: colours in sRGB, eight bits, over the background, upright.

    rules: None for a white background. max_pixels: checked in the header, before anything is decoded. Whatever a
    decoder raises for these bytes is returned, never raised.
    """
    picture = read_picture(data, max_pixels)
    if isinstance(picture, Undecodable):
        return picture
    try:
        return picture.upright(rules or image_rules())
    except Exception as problem:
        return damage(problem)


class Picture:
    """A picture whose header has been read. width, height: in pixels, upright. orientation: EXIF's, if to be undone."""

    def __init__(self, kind: str, opened: Image.Image, jpeg: JpegHeader | None, data: bytes, orient: bool) -> None:
        self.kind = kind
        self._opened = opened
        self._jpeg = jpeg
        self._data = data
        profile = opened.info.get("icc_profile")
        self._profile = profile if isinstance(profile, bytes) else None
        self.orientation = self._turned() if orient else None
        lying = self.orientation is not None and self.orientation >= 5 and kind != "TIFF"  # Pillow turns those itself
        self.width, self.height = opened.size[::-1] if lying else opened.size

    def _turned(self) -> int | None:
        """The orientation to undo, 2 to 8."""
        if self._jpeg is not None and self._jpeg.orientation is not None:
            value: Any = self._jpeg.orientation
        elif self.kind == "PNG" and not png_chunks.may_be_turned(self._data):
            return None  # Pillow would decode the whole picture to find out
        else:
            try:
                value = self._opened.getexif().get(_TAG)
            except Exception:  # damaged tags of a valid picture
                return None
        return value if value in UPRIGHT else None

    @property
    def is_plain(self) -> bool:
        """Whether the pixels need no more than decoding: upright, opaque, sRGB, eight bits."""
        return (
            self.orientation is None
            and self._opened.mode in ("RGB", "L")
            and not self._opened.has_transparency_data
            and is_srgb(self._profile)
        )

    def upright(self, rules: ImageRules) -> Image.Image:
        """The picture in mode RGB, see `open_upright_srgb`.

        Raises `DamagedPicture`, and what Pillow raises for damaged data.
        """
        image = self._composited(rules)
        return self._set_upright(image if image.mode == "RGB" else image.convert("RGB"))

    def upright_array(self, rules: ImageRules, shrink: int = 1) -> np.ndarray:
        """uint8 [h, w, 3], or [h, w] of greys. shrink: the factor by which both sides are reduced.

        Raises as `upright` does.
        """
        if self.is_plain and self._jpeg is not None and self._jpeg.colorspace in _OPEN_COLORSPACES:
            return self._decoded_jpeg(self._jpeg)
        image = self._composited(rules)
        return np.asarray(self._set_upright(image.reduce(shrink) if shrink > 1 else image))

    def _set_upright(self, image: Image.Image) -> Image.Image:
        if self.orientation is None or self.kind == "TIFF":
            return image
        return image.transpose(UPRIGHT[self.orientation])

    def _composited(self, rules: ImageRules) -> Image.Image:
        image, alpha = self._pixels()
        if alpha is None:
            return image
        ground = Image.new("RGB", image.size, background_rgb(rules))
        ground.paste(image if image.mode == "RGB" else image.convert("RGB"), mask=alpha)
        return ground

    def _pixels(self) -> tuple[Image.Image, Image.Image | None]:
        """sRGB, in mode L or RGB, and the alpha channel if there is one."""
        profile = self._profile
        if self._jpeg is not None:
            decoded = self._decoded_jpeg(self._jpeg)
            if self._jpeg.colorspace in _OPEN_COLORSPACES:
                return to_srgb(Image.fromarray(decoded), profile), None
        if self.kind == "PNG" and (chunk := png_chunks.damaged_chunk(self._data)) is not None:
            raise DamagedPicture(Undecodable("image_damaged", f"PNG: wrong checksum of {chunk}"))
        image = self._opened
        if self.kind == "TIFF" and (what := misread(image)) is not None:
            raise DamagedPicture(Undecodable("image_unsupported", what))
        tiles = getattr(image, "tile", []) if self.kind == "GIF" else []
        frame = tiles[0].extents if tiles else None
        image.load()
        if is_deep(image):
            image = scaled_to_eight_bits(image)
        image = _with_alpha(image, self._data if self.kind == "PNG" else b"")
        if frame is not None and frame != (0, 0, *image.size):
            image = _transparent_around(image, frame)
        if image.mode not in ("RGBA", "LA"):
            return to_srgb(image, profile), None
        return to_srgb(image.convert(image.mode[:-1]), profile), image.getchannel("A")

    def _decoded_jpeg(self, jpeg: JpegHeader) -> np.ndarray:
        """Of inks, only whether they are whole: Pillow knows which programs store them inverted."""
        colours = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(jpeg.colorspace, "RGB")
        decoded = jpeg_data.decode_strictly(jpeg.data, colours)
        if isinstance(decoded, Undecodable):
            raise DamagedPicture(decoded)
        return decoded[..., 0] if colours == "GRAY" else decoded


class DamagedPicture(Exception):
    """Raised within the decoding of one picture; carries the reason."""

    def __init__(self, reason: Undecodable) -> None:
        self.reason = reason
        super().__init__(reason.message)


def read_picture(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, orient: bool = True) -> Picture | Undecodable:
    """The picture with its header read, nothing decoded; else why there is none. orient: apply the orientation."""
    start = data[:SNIFF_BYTES]
    refused, kind = why_not_read(start), format_of(start)
    if refused is not None:
        return Undecodable("image_unsupported", refused)
    if kind is None:
        return Undecodable("image_undecodable", f"no image format that embedpipe reads: begins with {start[:16]!r}")
    try:
        jpeg = jpeg_data.read_header(data) if kind == "JPEG" else None
        opened = _opener(kind)(io.BytesIO(jpeg.data if jpeg is not None else data), "")
        width, height = opened.size
        if width * height > max_pixels:  # before EXIF, for which Pillow may decode the picture
            return Undecodable("image_too_large", f"{width}×{height} is more than {max_pixels} pixels")
        return Picture(kind, opened, jpeg, data, orient)
    except Exception as problem:
        return damage(problem)


def damage(problem: Exception) -> Undecodable:
    """The reason for what was raised while data that begin like a picture were decoded."""
    if isinstance(problem, DamagedPicture):
        return problem.reason
    if isinstance(problem, SyntaxError) and "unknown pixel mode" in str(problem):  # Pillow's, of TIFFs
        return of_problem("image_unsupported", problem)
    too_large = isinstance(problem, Image.DecompressionBombError)
    return of_problem("image_too_large" if too_large else "image_damaged", problem)


def _opener(kind: str) -> Callable[[io.BytesIO, str], Image.Image]:
    """Pillow's opener of one format. `Image.open` would apply a limit of pixels that the whole process shares."""
    if kind not in Image.OPEN:
        if kind == "HEIF":
            importlib.import_module("pillow_heif").register_heif_opener()
        else:
            Image.init()
    return cast("Callable[[io.BytesIO, str], Image.Image]", Image.OPEN[kind][0])


def _transparent_around(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """A GIF whose first picture does not fill the canvas: the rest, to which Pillow gives a colour, is transparent."""
    whole = image if image.mode in ("LA", "RGBA") else image.convert("LA" if image.mode == "L" else "RGBA")
    around = Image.new(whole.mode, whole.size)
    around.paste(whole.crop(frame), frame)
    return around


def _with_alpha(image: Image.Image, png: bytes) -> Image.Image:
    """The image in a mode without a palette, with an alpha channel (LA, RGBA) if anything of it may be transparent.

    png: the file, if it is one: Pillow compares its transparent value with pixels that have been scaled to eight bits.
    """
    if image.mode == "1":
        image = image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    key = image.info.get("transparency")
    bits = png[24] if png else 8
    if isinstance(key, int) and image.mode == "L" and 1 < bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)
    if isinstance(key, tuple) and image.mode == "RGB" and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
