"""What an output writes, truncates and deletes lies inside it: no symbolic link in it leads elsewhere.

Archives, git and rsync carry links, so a folder handed over by somebody else may hold one at any place. The output
itself may be a link, and so may data files, which are replaced and deleted by name: that acts on the link and not on
its target.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputUnwritable
from .filesystem import is_local, local_path

_REMEDY = "Remove it, or put a folder in its place; only the output itself may be a link"


def refuse_outward_links(root: str) -> None:
    """Raise OutputUnwritable if a link in the local output `root` leads outside, to a folder or from a hidden place.

    Hidden files (`.lock`, `.fetch/`) are a run's own state: none of them is a link for a good reason.
    """
    if is_local(root) and local_path(root).is_dir():
        for link in _links(str(local_path(root)), hidden=False):
            refuse_outward_link(root, link)


def refuse_outward_link(root: str, place: str) -> None:
    """Raise OutputUnwritable if `place`, inside the local output `root`, is a link that leads outside of `root`."""
    if not is_local(root) or not local_path(place).is_symlink():
        return
    if not Path(os.path.realpath(local_path(place))).is_relative_to(os.path.realpath(local_path(root))):
        raise OutputUnwritable(f"{place}: a symbolic link that leads out of {root}", _REMEDY)


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a regular file, which the caller closes; created with the usual mode if `flags` has O_CREAT.

    Raises OutputUnwritable if it is a link, a pipe, a device or a folder; OSError.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as problem:
        if problem.errno == errno.ELOOP and path.is_symlink():
            raise OutputUnwritable(f"{path}: a symbolic link, where a file of the run belongs", _REMEDY) from problem
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OutputUnwritable(f"{path}: not a regular file", "Remove it")
    return descriptor


def _links(folder: str, hidden: bool) -> Iterator[str]:
    """The links below `folder` that lead to a folder or to nothing, and all those in hidden places."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_hidden = hidden or entry.name.startswith(".")
            if entry.is_symlink():
                if is_hidden or not entry.is_file():
                    yield entry.path
            elif entry.is_dir():
                yield from _links(entry.path, is_hidden)
