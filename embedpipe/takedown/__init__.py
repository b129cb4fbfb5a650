"""Take rows out of image shards, embedding data sets, their indexes and selections, for good."""

from ..callable_package import callable_as
from .config import TakedownConfig, TakedownReport, TakenFrom

__all__ = ["TakedownConfig", "TakedownReport", "TakenFrom"]

callable_as(__name__, ".job:takedown")
