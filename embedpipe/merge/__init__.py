"""Merge several embedding data sets into one.

The package itself is callable: `embedpipe.merge(paths, out, config)` is `embedpipe.merge.job.merge`.
"""

from __future__ import annotations

from ..callable_package import callable_as
from .job import MergeConfig, MergeReport, merge, plan_merge

__all__ = ["MergeConfig", "MergeReport", "merge", "plan_merge"]

callable_as(__name__, ".job:merge")
