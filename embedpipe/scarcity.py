"""What this machine lacks: open files, memory, processes, ports, a network. None of it says anything about the data."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path

from .errors import OutOfResources

_REMEDY = "What is committed is whole. Provide more, or use fewer threads and workers, and run the same command again"
_LACKS = {
    errno.EMFILE: "open files (see `ulimit -n`)",
    errno.ENFILE: "open files (of all processes together)",
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "memory for its network",
    errno.EADDRNOTAVAIL: "ports for outgoing connections",
}
# RuntimeErrors of Python and PyTorch, by a part of their text.
_SAID = {
    "can't start new thread": "threads or memory for them (see `ulimit -u`)",
    "DefaultCPUAllocator: can't allocate memory": "memory",
    "CUDA out of memory": "memory of its GPU (see `batch_size`)",
    "CUDA error: out of memory": "memory of its GPU (see `batch_size`)",
    "_STATUS_ALLOC_FAILED": "memory of its GPU (see `batch_size`)",
}
_IPV4_ROUTES = Path("/proc/net/route")
_IPV6_ROUTES = Path("/proc/net/ipv6_route")
_IPV6_GLOBAL = ("2", "3", "fc", "fd", "0" * 32)  # global, unique local, default


def lack_of(problem: BaseException) -> str | None:
    """What this machine has run out of, if that is the reason of `problem`."""
    if isinstance(problem, MemoryError):
        return "memory"
    if isinstance(problem, RuntimeError):
        return next((lack for said, lack in _SAID.items() if said in str(problem)), None)
    if isinstance(problem, BlockingIOError):  # EAGAIN, where nothing was asked not to block: a fork
        return "processes (see `ulimit -u`)"
    return _LACKS.get(problem.errno or 0) if isinstance(problem, OSError) else None


def out_of(what: str) -> OutOfResources:
    """The error to raise for a lack of `what`."""
    return OutOfResources(f"this machine has run out of {what}", _REMEDY)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Raise OutOfResources in place of an OSError, MemoryError or RuntimeError that says what this machine lacks."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as problem:
        if (what := lack_of(problem)) is None:
            raise
        raise out_of(what) from problem


def most_open_files() -> int:
    """How many files a process may have open once it has raised its limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def raise_file_limit() -> None:
    """Raise this process's limit of open files as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # more than the kernel's own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def has_network() -> bool:
    """Whether this machine has a route to any other; True where that cannot be told."""
    try:
        rows = [line.split() for line in _IPV4_ROUTES.read_text().splitlines()[1:]]
        rows6 = [line.split() for line in _IPV6_ROUTES.read_text().splitlines()] if _IPV6_ROUTES.exists() else []
    except OSError:
        return True
    if any(row and row[0] != "lo" for row in rows):
        return True
    return any(row and row[-1] != "lo" and row[0].startswith(_IPV6_GLOBAL) for row in rows6)
