"""Select rows of an embedding data set: deduplicate and filter. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import dedup, filter
    from .dedup import KEEP, DedupConfig, DedupPlan, DedupReport, plan_dedup
    from .filter import ConditionReport, FilterConfig, FilterReport, plan_filter
    from .image_shards import ImageExportReport, export_images, plan_images

_HOMES = {
    "KEEP": "dedup",
    "ConditionReport": "filter",
    "DedupConfig": "dedup",
    "DedupPlan": "dedup",
    "DedupReport": "dedup",
    "FilterConfig": "filter",
    "FilterReport": "filter",
    "ImageExportReport": "image_shards",
    "export_images": "image_shards",
    "plan_dedup": "dedup",
    "plan_filter": "filter",
    "plan_images": "image_shards",
}
_ROOMS = ("dedup", "filter")

__all__ = [
    "KEEP",
    "ConditionReport",
    "DedupConfig",
    "DedupPlan",
    "DedupReport",
    "FilterConfig",
    "FilterReport",
    "ImageExportReport",
    "dedup",
    "export_images",
    "filter",
    "plan_dedup",
    "plan_filter",
    "plan_images",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
