"""Choosing among the rows of an embedding data set."""

from __future__ import annotations

from .duplicates import KEEP
from .semdedup import DedupConfig, DedupReport, dedup

__all__ = ["KEEP", "DedupConfig", "DedupReport", "dedup"]
