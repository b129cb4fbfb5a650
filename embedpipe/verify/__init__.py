"""Verify an output: counts and sizes by default, every byte and number with `deep`; `repair` drops damaged shards.

The package itself is callable: `embedpipe.verify(path, config)` is `embedpipe.verify.job.verify`.
"""

from __future__ import annotations

from ..callable_package import callable_as
from .job import KINDS, Fault, VerifyConfig, VerifyReport, verify

__all__ = ["KINDS", "Fault", "VerifyConfig", "VerifyReport", "verify"]

callable_as(__name__, ".job:verify")
