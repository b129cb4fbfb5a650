"""Select rows of an embedding data set: deduplicate and filter."""

from __future__ import annotations

from . import dedup, filter
from .dedup import KEEP, DedupConfig, DedupPlan, DedupReport, plan_dedup
from .filter import ConditionReport, FilterConfig, FilterReport, plan_filter
from .image_shards import ImageExportReport, export_images, plan_images

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
