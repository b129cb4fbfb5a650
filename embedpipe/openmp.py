"""Set how long idle OpenMP threads spin before they sleep; imports nothing, so it can run before torch is loaded.

By default libgomp's threads spin for milliseconds at the end of each parallel region. On a machine with other work, a
spinning thread takes the core from the one it is waiting for, and small models take several times as long. Threads that
sleep at once cost a system call for every small operation instead. A short spin is between the two;
`benchmarks/openmp_wait.py` compares settings, alone and beside other work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping

SPIN_COUNT = "1000"
# If one of these is set, the user has made a choice.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set `environment` so that OpenMP, once loaded, spins only briefly; a choice of the user is left alone.

    OpenMP reads its variables once, when the first library that uses it is loaded: later calls only affect child
    processes.
    """
    if not any(name in environment for name in _CHOICES):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
        environment["KMP_BLOCKTIME"] = "1"  # milliseconds: Intel's and LLVM's OpenMP, 200 by default


@contextlib.contextmanager
def bounded_in_children() -> Iterator[None]:
    """Within the block, child processes spin only briefly; this process's own environment is restored."""
    before = {name: os.environ.get(name) for name in _CHOICES}
    bound_spinning()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
