"""img2dataset's resizer reimplemented with OpenCV alone: the same bytes, without its thirty packages."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from ..download.image import PictureRules, Resizer
from .base import Kind

_SHORTER = ("keep_ratio", "center_crop")
_LONGER = ("border", "keep_ratio_largest")
_WHITE = (255, 255, 255)


def _make(rules: PictureRules, quality: int) -> Resizer:
    return _OpenCvResizer(rules, quality)


class _OpenCvResizer:
    """Decodes, resizes and encodes one image at a time; area interpolation down, Lanczos up."""

    def __init__(self, rules: PictureRules, quality: int) -> None:
        import cv2  # lazy: only this class needs it

        self._cv2: Any = cv2
        self._rules = rules
        of_format = {
            "jpg": cv2.IMWRITE_JPEG_QUALITY,
            "png": cv2.IMWRITE_PNG_COMPRESSION,
            "webp": cv2.IMWRITE_WEBP_QUALITY,
        }
        self._parameters = [int(of_format[rules.image_format]), quality]
        cv2.setNumThreads(1)

    def __call__(self, stream: BinaryIO, boxes: None = None) -> tuple[Any, ...]:
        """Image bytes → new bytes, width, height, original width, original height, None; or five None and an error."""
        cv2 = self._cv2
        try:
            image = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_UNCHANGED)
            if image is None:
                return (None,) * 5 + ("Image decoding error",)
            height, width = image.shape[:2]
            made = self._resized(_on_white(image))
            data = cv2.imencode(f".{self._rules.image_format}", made, self._parameters)[1].tobytes()
        except cv2.error as problem:
            return (None,) * 5 + (str(problem),)
        return data, made.shape[1], made.shape[0], width, height, None

    def _resized(self, image: np.ndarray) -> np.ndarray:
        """`image` [h, w] or [h, w, 3] of uint8, resized by the rules."""
        cv2, rules = self._cv2, self._rules
        if rules.resize_mode not in (*_SHORTER, *_LONGER):
            return image
        height, width = image.shape[:2]
        side = min(height, width) if rules.resize_mode in _SHORTER else max(height, width)
        is_smaller = side <= rules.image_size
        if is_smaller and rules.only_if_bigger:
            return image
        scale = rules.image_size / side
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if size != (height, width):
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LANCZOS4 if is_smaller else cv2.INTER_AREA)
        if rules.resize_mode == "center_crop":
            top, left = (size[0] - rules.image_size) // 2, (size[1] - rules.image_size) // 2
            image = image[top : top + rules.image_size, left : left + rules.image_size]
        if rules.resize_mode == "border":
            rest = [max(0, rules.image_size - length) for length in size]
            (top, left), (bottom, right) = [it // 2 for it in rest], [it - it // 2 for it in rest]
            image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=_WHITE)
        return image


def _on_white(image: np.ndarray) -> np.ndarray:
    """[h, w, 4] composited on white; others unchanged."""
    if image.ndim < 3 or image.shape[-1] != 4:
        return image
    alpha = image[:, :, 3, np.newaxis]
    mixed: np.ndarray = alpha / 255 * image[..., :3] + 255 - alpha
    return np.asarray(np.rint(mixed.clip(min=0, max=255)), np.uint8)


KIND = Kind({"cv2": "opencv-python-headless"}, _make)
