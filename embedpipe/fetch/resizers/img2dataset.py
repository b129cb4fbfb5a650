"""img2dataset's resizer. The only file that imports img2dataset."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
from types import ModuleType

from ..download.image import PictureRules, Resizer
from .base import Kind


def _make(rules: PictureRules, quality: int) -> Resizer:
    # albumentations, a dependency, would query PyPI for its newest version at every start, and warn.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    resizer: Resizer = _module().Resizer(
        image_size=rules.image_size,
        resize_mode=rules.resize_mode,
        resize_only_if_bigger=rules.only_if_bigger,
        encode_format=rules.image_format,
        encode_quality=quality,
    )
    return resizer


@functools.cache
def _module() -> ModuleType:
    # Load only the needed file of the package. The package itself imports torch, ray and wandb: seconds per download
    # process, and hundreds of megabytes.
    package = importlib.util.find_spec("img2dataset")
    assert package is not None, "chosen only where it is installed"
    spec = importlib.machinery.PathFinder.find_spec("img2dataset.resizer", package.submodule_search_locations)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# It imports imghdr, which Python 3.13 removed.
KIND = Kind({"img2dataset": "img2dataset", "imghdr": "standard-imghdr"}, _make)
