"""Where a training works: in its output, or for an object store in the working folder that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dalle2_core.training import Processes
from embedpipe.mirror import Place, Scope, at_work, working_folder

from .trained_rows import TRAINED_ROWS

# What is kept to be quicker the next time stays on the machine.
TRAINING = Scope(own=("checkpoints", "run.json", TRAINED_ROWS), leave=("cache", "join", "latents-*.npy"))


@contextmanager
def run_folder(out: str, together: Processes) -> Iterator[Place]:
    """The place of the run `out`. The first process holds it and commits; the others know where it is.

    Raises what `at_work` raises.
    """
    if not together.is_first:
        yield Place(working_folder(out))
        return
    with at_work(out, TRAINING) as place:
        yield place
