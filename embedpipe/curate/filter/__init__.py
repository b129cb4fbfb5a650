"""Filter the rows of an embedding data set by conditions. `embedpipe.curate.filter(...)` is the job itself."""

from __future__ import annotations

from embedpipe.callable_package import callable_as

from .job import ConditionReport, FilterConfig, FilterReport, plan_filter

__all__ = ["ConditionReport", "FilterConfig", "FilterReport", "plan_filter"]

callable_as(__name__, ".job:filter")
