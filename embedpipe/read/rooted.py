"""Local files that a table names: read only if they lie below a root folder, after all links are resolved."""

from __future__ import annotations

import errno
import os
import stat


class OutsideRoot(OSError):
    """A path that leads out of the root."""


def read_below(root: str, path: str, most_bytes: int = -1) -> bytes:
    """The first `most_bytes` of the file at `path` (all of it if negative).

    Raises OutsideRoot, or another OSError if it cannot be read or is no ordinary file.
    """
    try:
        real, real_root = os.path.realpath(path), os.path.realpath(root)
    except ValueError:
        raise OSError(errno.EINVAL, "no path", path) from None
    if os.path.commonpath([real, real_root]) != real_root:
        raise OutsideRoot(errno.EPERM, f"leads out of {root}", path)
    # Without links, which may have been put there since; not waiting for the other end of a pipe.
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:  # noqa: PTH123  an open descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", path)
        return stream.read(most_bytes)
