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
    """No-op: a local output is committed by being written."""


@dataclass(frozen=True, slots=True)
class Place:
    """folder: the local working folder. commit: update the output to its current contents."""

    folder: str
    commit: Callable[[], None] = _nothing


@contextlib.contextmanager
def at_work(out: str, scope: Scope) -> Iterator[Place]:
    """A locked working folder for `out`, any fsspec url; committed if the block ends without an exception.

    It contains the existing files of `out`, whoever wrote them. Raises OutputBusy (another process or machine uses it),
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
