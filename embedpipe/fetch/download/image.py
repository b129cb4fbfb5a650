"""Response body → stored image, or the reason for its failure.

The header is checked first: an image that is too small, too large or too elongated is never decoded. A resizer
(`resizers`) does the resizing. All use OpenCV, which reads plain JPEG, PNG and WebP like other decoders, but ignores
orientation, colour profiles, CMYK, 16-bit channels and transparency: Pillow converts such images first.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from .. import outcome
from ..http import sniff
from ..outcome import Failure

MAX_PIXELS = 100_000_000

_PLAIN_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
_PLAIN_MODES = frozenset({"RGB", "L"})
_LONGEST_SIDE = {"jpg": 65_500, "webp": 16_383, "png": 2**31 - 1}

_ORIENTATION = 0x0112
# EXIF's eight orientations, and the transform that undoes each.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Exceptions that Pillow is known to raise for damaged headers, tags and pixels.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)

# A resizer with img2dataset's signature: (stream, boxes) → image, width, height, original width, original height,
# error.
Resizer = Callable[[Any, Any], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class PictureRules:
    """How images are filtered and stored. Sizes in pixels; `max_aspect_ratio` 0 means any."""

    image_size: int
    resize_mode: str
    only_if_bigger: bool
    min_image_size: int
    max_aspect_ratio: float
    orient: bool
    image_format: str


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as stored. `orientation` is the EXIF orientation that was undone (2 to 8), None if there was none.

    The original size is that of the upright image.
    """

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    orientation: int | None


@dataclass(frozen=True, slots=True)
class _Header:
    kind: str
    width: int
    height: int
    orientation: int | None
    plain: bool


class PictureMaker:
    """Converts downloaded images to stored ones, one at a time."""

    def __init__(self, rules: PictureRules, resizer: Resizer) -> None:
        self.rules = rules
        self.resizer = resizer
        Image.MAX_IMAGE_PIXELS = None  # our own limit is reported as a failure instead of a warning

    def make(self, body: bytes) -> StoredImage | Failure:
        """The image in `body`, resized and encoded."""
        found = self._header(body)
        if isinstance(found, Failure):
            return found
        if failure := self._refusal(found):
            return failure
        if not found.plain:
            plain = self._plain(body, found)
            if isinstance(plain, Failure):
                return plain
            body = plain
        data, width, height, _, _, error = self.resizer(io.BytesIO(body), None)
        if error is not None:
            return outcome.of_resizing(str(error))
        original = (found.width, found.height)
        return StoredImage(data, width, height, *original, found.orientation)

    def _header(self, body: bytes) -> _Header | Failure:
        kind = sniff.kind_of(body[: sniff.BYTES])
        if kind is None:
            return sniff.not_an_image(body, None)
        try:
            with Image.open(io.BytesIO(body), formats=(kind,)) as image:
                if image.width * image.height > MAX_PIXELS:  # before EXIF, for which Pillow decodes a whole PNG
                    return Failure("too_large", f"{image.width}×{image.height}: more pixels than fetch decodes")
                orientation = _orientation(image) if self.rules.orient else None
                lying = orientation is not None and orientation >= 5 and kind != "TIFF"  # Pillow rotates those itself
                width, height = image.size[::-1] if lying else image.size
                plain = (
                    orientation is None
                    and image.format in _PLAIN_FORMATS
                    and image.mode in _PLAIN_MODES
                    and "transparency" not in image.info
                    and _depth(body) <= 8
                    and _profile(image) is None
                )
                return _Header(kind, width, height, orientation, plain)
        except _DAMAGE as problem:
            return Failure("decode", f"damaged header: {problem}"[:300])

    def _refusal(self, found: _Header) -> Failure | None:
        """Why an image of this size is rejected before decoding."""
        width, height = found.width, found.height
        shorter, longer = sorted((width, height))
        if shorter < max(1, self.rules.min_image_size):
            return Failure("too_small", f"{width}×{height}")
        if self.rules.max_aspect_ratio and longer > self.rules.max_aspect_ratio * shorter:
            return Failure("aspect_ratio", f"{width}×{height}")
        stored_width, stored_height = self._stored_size(width, height)
        # Enlarging the shorter side of a thin image can give any number of pixels.
        if stored_width * stored_height > MAX_PIXELS:
            return Failure("too_large", f"{width}×{height}, resized: more pixels than fetch stores")
        if max(stored_width, stored_height) > _LONGEST_SIDE[self.rules.image_format]:
            return Failure("too_large", f"{width}×{height}: longer than a {self.rules.image_format} can be")
        return None

    def _stored_size(self, width: int, height: int) -> tuple[float, float]:
        """The approximate resized size, before cropping or padding."""
        mode = self.rules.resize_mode
        if mode == "no":
            return width, height
        side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
        scale = self.rules.image_size / side
        if self.rules.only_if_bigger:
            scale = min(scale, 1.0)
        return width * scale, height * scale

    def _plain(self, body: bytes, found: _Header) -> bytes | Failure:
        """The image in a form that OpenCV reads correctly: upright, sRGB, eight bits, on white. An uncompressed BMP."""
        try:
            with Image.open(io.BytesIO(body), formats=(found.kind,)) as opened:
                if opened.mode == "F":
                    return Failure("decode", "pixels of floating point have no known range")
                image = _flat(_srgb(opened))
        except _DAMAGE as problem:
            return Failure("decode", str(problem)[:300] or type(problem).__name__)
        stored = self._stored_size(found.width, found.height)
        # Much larger than the stored size: halved repeatedly first, so that its copies do not fill the memory.
        factor = int(min(found.width / stored[0], found.height / stored[1]) / 2)
        if factor > 1:
            image = image.reduce(factor)
        if found.orientation is not None and found.kind != "TIFF":
            image = image.transpose(_UPRIGHT[found.orientation])
        sink = io.BytesIO()
        image.save(sink, "BMP")
        return sink.getvalue()


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION)
    except _DAMAGE:
        return None  # damaged tags of a valid image
    return value if value in _UPRIGHT else None


def _depth(body: bytes) -> int:
    """Bits per channel of a PNG: Pillow reduces sixteen to eight, OpenCV does not."""
    return body[24] if body.startswith(b"\x89PNG") and len(body) > 24 else 8


def _profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The image's colour profile; None if missing, broken, or sRGB."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = ImageCms.getProfileDescription(profile)
    except (ImageCms.PyCMSError, *_DAMAGE):
        return None
    return None if "srgb" in name.lower() else profile


def _srgb(image: Image.Image) -> Image.Image:
    """The first frame, converted to sRGB, in mode L, RGB or one with transparency."""
    profile = _profile(image)
    image.load()
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8))
    if profile is not None and image.mode in ("RGB", "L", "CMYK"):
        try:
            found = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:
            found = None  # a profile for another image mode
        if found is not None:
            return found
    return image


def _flat(image: Image.Image) -> Image.Image:
    """`image` composited on white."""
    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
        return image.convert("RGB")
    seen = image.convert("RGBA")
    ground = Image.new("RGB", seen.size, (255, 255, 255))
    ground.paste(seen, mask=seen.getchannel("A"))
    return ground
