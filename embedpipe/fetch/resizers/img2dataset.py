"""img2dataset's resizer. The only file that imports img2dataset."""

from __future__ import annotations

import importlib
import os

from ..picture import PictureRules, Resizer
from .base import Kind


def _make(rules: PictureRules, quality: int) -> Resizer:
    # albumentations, inside it, would ask PyPI for its newest version at every start, and warn of it.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    resizer: Resizer = importlib.import_module("img2dataset.resizer").Resizer(
        image_size=rules.image_size,
        resize_mode=rules.resize_mode,
        resize_only_if_bigger=rules.only_if_bigger,
        encode_format=rules.image_format,
        encode_quality=quality,
    )
    return resizer


# It imports imghdr, which Python 3.13 removed.
KIND = Kind({"img2dataset": "img2dataset", "imghdr": "standard-imghdr"}, _make)
