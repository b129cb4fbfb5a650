"""Is an output whole? Counts and sizes fast, every byte and number with `deep`; bad shards are dropped with `repair`.

The room itself is callable: `embedpipe.verify(path, config)` is `embedpipe.verify.job.verify`.
"""

from __future__ import annotations

from ..callable_package import callable_as
from .job import KINDS, Fault, VerifyConfig, VerifyReport, verify

__all__ = ["KINDS", "Fault", "VerifyConfig", "VerifyReport", "verify"]

callable_as(__name__, ".job:verify")
