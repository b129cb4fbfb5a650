"""Call a function of bytes in a child process whose memory and time are limited, and which may die.

These are limits on what a damaged or hostile file can cost, not a sandbox: the child may open files like its parent.
"""

from .calls import LimitedCalls, Stopped
from .limits import FAULTS, CallFault, CallLimits

__all__ = ["FAULTS", "CallFault", "CallLimits", "LimitedCalls", "Stopped"]
