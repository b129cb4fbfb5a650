"""Small pictures of other people's images, for pages and sheets; imports no torch."""

from __future__ import annotations

import atexit

from PIL import Image

from ..limited import CallFault, LimitedCalls
from .cost import DEFAULT_MAX_SECONDS, is_bounded, limits_for
from .open import DEFAULT_MAX_PIXELS, open_upright_srgb
from .undecodable import Undecodable


def small_picture(data: bytes, side_px: int) -> Image.Image | None:
    """The picture in mode RGB, at most `side_px` per side; None if it cannot be decoded, at the cost that one may have.

    Like `guarded.guarded_decode`, it decodes in a child what is not known to be cheap.
    """
    if is_bounded(data):
        return _shrunk(data, side_px)
    made = _CALLS.call(_pixels, data, (side_px,), limits_for(DEFAULT_MAX_PIXELS, DEFAULT_MAX_SECONDS))
    return None if made is None or isinstance(made, CallFault) else Image.frombytes("RGB", *made)


def _shrunk(data: bytes, side_px: int) -> Image.Image | None:
    picture = open_upright_srgb(data)
    if isinstance(picture, Undecodable):
        return None
    picture.thumbnail((side_px, side_px))
    return picture


def _pixels(data: bytes, side_px: int) -> tuple[tuple[int, int], bytes] | None:
    """In the child."""
    small = _shrunk(data, side_px)
    return None if small is None else (small.size, small.tobytes())


def _prepare() -> None:
    Image.init()


_CALLS = LimitedCalls(_prepare)
atexit.register(_CALLS.close)
