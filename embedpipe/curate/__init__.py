"""Choosing among the rows of an embedding data set."""

from __future__ import annotations

from .duplicates import KEEP
from .filtering import ConditionReport, FilterConfig, FilterReport, filter, plan_filter
from .images import ExportReport, export_images, plan_images
from .semdedup import DedupConfig, DedupPlan, DedupReport, dedup, plan_dedup

__all__ = [
    "KEEP",
    "ConditionReport",
    "DedupConfig",
    "DedupPlan",
    "DedupReport",
    "ExportReport",
    "FilterConfig",
    "FilterReport",
    "dedup",
    "export_images",
    "filter",
    "plan_dedup",
    "plan_filter",
    "plan_images",
]
