"""Near-duplicate removal for embedding data sets. `embedpipe.curate.dedup(...)` is the job itself."""

from __future__ import annotations

from embedpipe.callable_package import callable_as

from .job import DedupConfig, DedupPlan, DedupReport, plan_dedup
from .search import KEEP

__all__ = ["KEEP", "DedupConfig", "DedupPlan", "DedupReport", "plan_dedup"]

callable_as(__name__, ".job:dedup")
