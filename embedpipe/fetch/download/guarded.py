"""`PictureMaker` for other people's images: what one may cost is bounded, and a crash is that image's alone.

As `images.guarded` does for `encode`: most images are made in the download process itself, the others in a child.
"""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import dataclass

from ...images.cost import is_bounded, limits_for, speaks_of_memory
from ...limited import CallFault, LimitedCalls
from .. import resizers
from ..outcome import Failure
from .image import MAX_PIXELS, PictureMaker, PictureRules, StoredImage


@dataclass(frozen=True, slots=True)
class MakerSettings:
    """How images are made. resizer: a name in `resizers.RESIZERS`. max_seconds: of processor time, per image."""

    rules: PictureRules
    resizer: str
    quality: int
    max_seconds: float


class GuardedPictures:
    """Converts downloaded images to stored ones; costly ones, and those that crash the decoder, are failures."""

    def __init__(self, settings: MakerSettings) -> None:
        self._settings = settings
        self._maker = picture_maker(settings)
        self._calls = LimitedCalls(functools.partial(_prepare, settings))

    def make(self, body: bytes, careful: bool = False) -> StoredImage | Failure:
        """The image in `body`, resized and encoded. careful: in a child in any case.

        Raises WorkerDied if this machine lets no child start.
        """
        if not careful and is_bounded(body):
            return self._maker.make(body)
        limits = limits_for(MAX_PIXELS, self._settings.max_seconds)
        found: StoredImage | Failure | CallFault = self._calls.call(_make, body, (self._settings,), limits)
        return Failure(found.error_class, found.message[:300]) if isinstance(found, CallFault) else found

    def close(self) -> None:
        """End the children."""
        self._calls.close()


@functools.cache
def picture_maker(settings: MakerSettings) -> PictureMaker:
    """The maker in this process."""
    resizer = resizers.make_resizer(resizers.choose_resizer(settings.resizer), settings.rules, settings.quality)
    return PictureMaker(settings.rules, resizer)


def hide_unneeded_modules() -> None:
    """For a process of embedpipe's own: img2dataset imports torch (through webdataset, for which it is optional) and
    wandb (used by its own logger only), three seconds per start, and nothing here uses them.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]
    sys.modules["wandb"] = types.ModuleType("wandb")


def _prepare(settings: MakerSettings) -> None:
    hide_unneeded_modules()
    picture_maker(settings)


def _make(body: bytes, settings: MakerSettings) -> StoredImage | Failure:
    """In the child. Whatever decoding raises is about this image."""
    try:
        made = picture_maker(settings).make(body)
    except MemoryError:
        raise
    except Exception as problem:
        made = Failure("decode", f"{type(problem).__name__}: {problem}"[:300])
    if isinstance(made, Failure) and made.error_class in ("damaged", "decode") and speaks_of_memory(made.message):
        raise MemoryError(made.message)
    return made
