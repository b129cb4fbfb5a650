"""Notice that the last run of an output was killed or crashed, as a decoder may do to the process of a single worker.

What it was at is then decoded with care: every image in a child, so that the one that crashes the decoder is rejected.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from .. import files
from ..execute import Task
from ..lock import Part

_NOTE = ".encoding"  # there while a run is at work
# Shards that a worker may have read ahead of the one that it was at; the next run in need of it takes the next ones.
_SHARDS_PER_WORKER = 4


@contextlib.contextmanager
def noted(out: str, part: Part | None) -> Iterator[bool]:
    """Keep a note in a local output within the block. Yields whether there was one: the last run was killed."""
    if not files.is_local(out):
        yield False
        return
    note = files.join(out, _NOTE if part is None else f"{_NOTE}-{part.index}-of-{part.count}")
    was_killed = files.exists(note)
    files.write_bytes(note, b"")
    try:
        yield was_killed
    finally:
        with contextlib.suppress(OSError):
            files.local_path(note).unlink()


def with_care(todo: Sequence[Task], workers: int) -> list[Task]:
    """The tasks, the first of which the last run may have been at, to be done with care."""
    first = _SHARDS_PER_WORKER * workers
    return [dataclasses.replace(task, careful=place < first) for place, task in enumerate(todo)]
