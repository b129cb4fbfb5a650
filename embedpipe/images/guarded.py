"""`decode` for other people's images: what one may cost is bounded, and a crash is that image's alone.

What `cost` finds bounded is decoded in this process, as fast as ever; everything else in a child with limits.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..clip_model.encoder_card import ImageRules, PreprocessSpec
from ..limited import CallFault, LimitedCalls
from .cost import DEFAULT_MAX_SECONDS, is_bounded, limits_for, speaks_of_memory
from .open import DEFAULT_MAX_PIXELS
from .undecodable import Undecodable

if TYPE_CHECKING:
    from .decoded import DecodedImage


def guarded_decode(
    data: bytes,
    spec: PreprocessSpec,
    rules: ImageRules | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    how: str = "exact",
    *,
    max_seconds: float = DEFAULT_MAX_SECONDS,
    careful: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> DecodedImage | Undecodable:
    """As `decode`; an image that takes too much memory or time, or crashes the decoder, is Undecodable as well.

    max_seconds: of processor time. careful: decode every image in a child. Raises `limited.Stopped` once `stopped()`
    is true, and WorkerDied if this machine lets no child start.
    """
    if not careful and is_bounded(data):
        from .decode import decode  # imports torch: who only plans does without

        return decode(data, spec, rules, max_pixels, how)
    found = _CALLS.call(_decode, data, (spec, rules, max_pixels, how), limits_for(max_pixels, max_seconds), stopped)
    if isinstance(found, CallFault):
        return Undecodable(found.error_class, found.message[:300])
    if isinstance(found, Undecodable):
        return found
    import torch

    image: DecodedImage = dataclasses.replace(found, pixels=torch.from_numpy(found.pixels))
    return image


def _decode(data: bytes, *arguments: Any) -> Any:
    """In the child: `decode`, with the pixels as an array, which is faster to send.

    Whatever it raises is about this image.
    """
    from .decode import decode

    try:
        found: DecodedImage | Undecodable = decode(data, *arguments)
    except MemoryError:
        raise
    except Exception as problem:
        found = Undecodable("image_undecodable", f"{type(problem).__name__}: {problem}"[:300])
    if isinstance(found, Undecodable):
        if found.error_class != "image_too_large" and speaks_of_memory(found.message):
            raise MemoryError(found.message)
        return found
    array: Any = found.pixels.numpy()
    return dataclasses.replace(found, pixels=array)


def _prepare() -> None:
    """Import all that decoding needs, before limits are set."""
    importlib.import_module(".decode", __package__)


_CALLS = LimitedCalls(_prepare)
atexit.register(_CALLS.close)
