"""Response body → stored image, or the reason for its failure.

The header is checked first: an image that is too small, too large or too elongated is never decoded. `images.open`
decodes: upright, sRGB, eight bits, over the background. A resizer (`resizers`) does the rest; all use OpenCV, which is
given the pixels as an uncompressed file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...images.open import Picture, damage, read_picture
from ...images.rules import WHITE, image_rules
from ...images.undecodable import Undecodable
from .. import outcome
from ..outcome import Failure

MAX_PIXELS = 100_000_000

_LONGEST_SIDE = {"jpg": 65_500, "webp": 16_383, "png": 2**31 - 1}

# A resizer with img2dataset's signature: (stream, boxes) → image, width, height, original width, original height,
# error.
Resizer = Callable[[Any, Any], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class PictureRules:
    """How images are filtered and stored. Sizes in pixels; `max_aspect_ratio` 0 means any. background: a CSS colour."""

    image_size: int
    resize_mode: str
    only_if_bigger: bool
    min_image_size: int
    max_aspect_ratio: float
    orient: bool
    image_format: str
    background: str = WHITE


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


class PictureMaker:
    """Converts downloaded images to stored ones, one at a time."""

    def __init__(self, rules: PictureRules, resizer: Resizer) -> None:
        self.rules = rules
        self.resizer = resizer
        self._image_rules = image_rules(rules.background)

    def make(self, body: bytes) -> StoredImage | Failure:
        """The image in `body`, resized and encoded. Whatever a decoder raises for it is a failure."""
        try:
            return self._made(body)
        except Exception as problem:
            return outcome.of_undecodable(damage(problem))

    def _made(self, body: bytes) -> StoredImage | Failure:
        picture = read_picture(body, MAX_PIXELS, self.rules.orient)
        if isinstance(picture, Undecodable):
            return outcome.of_undecodable(picture)
        if failure := self._refusal(picture):
            return failure
        # Much larger than the stored size: reduced first, so that its copies do not fill the memory. Plain images are
        # left to the resizer alone, as any other program would have it.
        stored = self._stored_size(picture.width, picture.height)
        shrink = 1 if picture.is_plain else max(1, int(min(picture.width / stored[0], picture.height / stored[1]) / 2))
        pixels = _uncompressed(picture.upright_array(self._image_rules, shrink))
        data, width, height, _, _, error = self.resizer(io.BytesIO(pixels), None)
        if error is not None:
            return outcome.of_resizing(str(error))
        return StoredImage(data, width, height, picture.width, picture.height, picture.orientation)

    def _refusal(self, found: Picture) -> Failure | None:
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


def _uncompressed(pixels: np.ndarray) -> bytes:
    """Pixels [h, w, 3] or [h, w] as a file that OpenCV reads in a fraction of the time of any other: Netpbm."""
    height, width = pixels.shape[:2]
    return b"%b\n%d %d\n255\n" % (b"P6" if pixels.ndim == 3 else b"P5", width, height) + pixels.tobytes()
