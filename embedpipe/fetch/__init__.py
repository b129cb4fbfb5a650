"""Download images: url table → image shards. `fetch(urls, out, config)` is the entry point."""

from ..callable_package import callable_as
from .config import RESIZE_MODES, FetchConfig, FetchReport
from .job import fetch, log_file, plan_fetch, remaining_shards, rows_to_retry
from .outcome import ERROR_CLASSES
from .plan import FetchPlan, make_plan

__all__ = [
    "ERROR_CLASSES",
    "RESIZE_MODES",
    "FetchConfig",
    "FetchPlan",
    "FetchReport",
    "fetch",
    "log_file",
    "make_plan",
    "plan_fetch",
    "remaining_shards",
    "rows_to_retry",
]

callable_as(__name__, ":fetch")
