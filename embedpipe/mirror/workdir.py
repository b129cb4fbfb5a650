"""The folder where a command works on disk: its output, or the local working folder of a remote one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .. import files
from ..lock import exclusive
from .mirror import Mirror, Scope
from .paths import working_folder


def _nothing() -> None:
    """A local output is committed by being written."""


@dataclass(frozen=True, slots=True)
class Place:
    """folder: local, to work in. commit: makes the output hold what is in it now."""

    folder: str
    commit: Callable[[], None] = _nothing


@contextlib.contextmanager
def at_work(out: str, scope: Scope) -> Iterator[Place]:
    """The place to work in for `out`, any fsspec url, held for this process; committed when the block ends well.

    It holds what is in `out` already, whoever put it there. Raises OutputBusy (another process or machine works on it),
    StorageFailed, OutputUnwritable, DiskFull.
    """
    folder = working_folder(out)
    with exclusive(folder):
        if files.is_local(out):
            yield Place(folder)
            return
        mirror = Mirror(out, folder, scope)
        mirror.begin()
        yield Place(folder, mirror.commit)
        mirror.commit()
