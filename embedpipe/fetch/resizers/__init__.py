"""Resizers: resize and re-encode images for storage. RESIZERS maps a name to a resizer; all write identical bytes."""

from __future__ import annotations

import importlib.util

from ...errors import MissingExtra, OptionError, did_you_mean
from ..download.image import PictureRules, Resizer
from . import img2dataset, opencv
from .base import Kind

# In the order of preference of `auto`, which takes the first that is installed.
RESIZERS: dict[str, Kind] = {"img2dataset": img2dataset.KIND, "opencv": opencv.KIND}
AUTO = "auto"


def check_name(name: str) -> None:
    """Raise OptionError unless `name` is a resizer or auto."""
    if name not in (AUTO, *RESIZERS):
        raise OptionError(f"`resizer={name!r}`: no such resizer", did_you_mean(name, (AUTO, *RESIZERS)))


def choose_resizer(name: str) -> str:
    """`name`, or for auto the first installed resizer. Raises OptionError (unknown) and MissingExtra."""
    check_name(name)
    if name == AUTO:
        name = next((known for known, kind in RESIZERS.items() if not _missing(kind)), next(iter(RESIZERS)))
    for module, package in _missing(RESIZERS[name]).items():
        raise MissingExtra(
            f"fetch resizes images with {name}, and the module {module} is not installed",
            f"Run `pip install {package}`",
        )
    return name


def make_resizer(name: str, rules: PictureRules, quality: int) -> Resizer:
    """Create the resizer of that name, which must be installed."""
    return RESIZERS[name].make(rules, quality)


def _missing(kind: Kind) -> dict[str, str]:
    return {module: package for module, package in kind.needs.items() if importlib.util.find_spec(module) is None}
