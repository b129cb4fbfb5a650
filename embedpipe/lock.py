"""File locks: one writer per shard of an output; a lock ends with its owner, however that dies.

    OUT/.lock            exclusive for a run of the whole output, shared by runs of parts of it
    OUT/.lock-3-of-8     exclusive for the run of that part
    OUT/.lock-plan       exclusive while the run of a part reads or writes what all parts share

The folder itself is locked as well, where its file system can (NFS cannot): a lock file may be removed during a run,
and then the next process would lock a new one. Where that could happen, the holder notices it at its next commit
(`require_held`).

Object stores have no such locks; there the manifests alone keep two writers from harm (same input and options give the
same bytes).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import files
from .containment import open_regular, refuse_outward_links
from .errors import OptionError, OutputBusy, OutputUnwritable

_LOCK_FILE = ".lock"
_PLAN_FILE = ".lock-plan"
_PART_FILE = re.compile(r"\.lock-(\d+)-of-(\d+)")
_WAIT = "Wait for it to end, or give another output folder"
# Retries when the lock file is removed at the same moment.
_TRIES = 20
# Errors from cluster file systems mounted without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

Held = dict[tuple[str, str], tuple[Path, os.stat_result]]
"""By the absolute path of an output that is worked on, and the name of a lock: what is locked, and where it must be."""

# A folder that is locked exclusively, else the lock file. It is held open, so that nothing else becomes what it is.
_held: Held = {}


@dataclass(frozen=True, slots=True)
class Part:
    """Every `count`th shard of an output, starting at number `index`: the work of one of `count` processes.

    neighbours: processes of the same job on this machine, which share its devices and cores; neighbour: the rank of
    this one among them. shared_gpus, shared_cores: what all of them have together, if the launcher says: a process that
    sees fewer was given its own.
    """

    index: int
    count: int
    neighbours: int = 1
    neighbour: int = 0
    shared_gpus: int | None = None
    shared_cores: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise OptionError(f"no part {self.index} of {self.count}", f"Parts are 0 to {self.count - 1}")

    def holds(self, number: int) -> bool:
        """Whether the shard with that number belongs to this part."""
        return number % self.count == self.index

    def overlaps(self, other: Part) -> bool:
        """Whether two parts have shards in common."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@contextlib.contextmanager
def exclusive(root: str) -> Iterator[None]:
    """Lock all of `root` for this process. Raises OutputBusy, naming the owner, if another has locked it or a part.

    The kernel releases the lock with the process, so a killed run leaves no stale lock.
    """
    if not files.is_local(root):
        yield
        return
    made = _missing_folders(root)
    with _opened(root, _LOCK_FILE, fcntl.LOCK_EX) as (lock, is_free):
        if not is_free:
            raise OutputBusy(f"{root}: in use by {_holder(root, lock)}", _WAIT)
        try:
            with _folder_locked(root, fcntl.LOCK_EX) as folder, _holding(root, _LOCK_FILE, lock, folder):
                refuse_outward_links(root)
                _sign(lock)
                for leftover, _ in _part_files(root):  # of killed parts: none runs now
                    leftover.unlink(missing_ok=True)
                yield
        except BaseException:
            _unmake(root, made)
            raise


@contextlib.contextmanager
def claimed(root: str, part: Part) -> Iterator[None]:
    """Lock a part of `root` for this process; others may lock other parts at the same time.

    Raises OutputBusy, naming the owner, if another process has locked the same part, an overlapping one, or all of it.
    """
    if not files.is_local(root):
        yield
        return
    with contextlib.ExitStack() as held:
        with planning(root):
            whole, is_free = held.enter_context(_opened(root, _LOCK_FILE, fcntl.LOCK_SH))
            if not is_free:
                raise OutputBusy(f"{root}: in use by {_owner(whole)}", _WAIT)
            _refuse_overlap(root, part)
            held.enter_context(_folder_locked(root, fcntl.LOCK_SH))
            refuse_outward_links(root)
            name = f"{_LOCK_FILE}-{part.index}-of-{part.count}"
            mine, _ = held.enter_context(_opened(root, name, fcntl.LOCK_EX))
            holding = held.enter_context(contextlib.ExitStack())
            holding.enter_context(_holding(root, name, mine))
            _sign(mine)
        try:
            yield
        finally:
            holding.close()  # a thread with another part is not to miss the file
            place = files.local_path(root) / name
            if _is_at(place, os.fstat(mine)):  # else it is another run's, in a folder that replaced ours
                with planning(root):  # nobody opens it meanwhile
                    place.unlink(missing_ok=True)


@contextlib.contextmanager
def planning(root: str) -> Iterator[None]:
    """Lock the data shared by all parts of `root`, waiting for other processes to release it."""
    if not files.is_local(root):
        yield
        return
    with _opened(root, _PLAN_FILE, fcntl.LOCK_EX, wait=True):
        yield


def held() -> Held:
    """What this process has locked, for its workers on this machine, see `inherit`."""
    return dict(_held)


def inherit(of_parent: Held) -> None:
    """In a worker process: notice as well if what its parent has locked is taken away, see `require_held`."""
    _held.update(of_parent)


def require_held(root: str) -> None:
    """Raise OutputBusy if this process works on `root` and another one can have locked it since.

    That is if the folder was removed or replaced, or the lock file where nothing else keeps others out.
    """
    output = files.absolute(root)
    for lock, (place, found) in [*_held.items()]:
        if lock[0] == output and not _is_at(place, found) and lock in _held:
            raise OutputBusy(
                f"{place}: was removed during this run, so another one may be writing to {root}",
                "What is committed is whole. Make sure that none is, and run the same command again",
            )


@contextlib.contextmanager
def _holding(root: str, name: str, lock: int, folder: int | None = None) -> Iterator[None]:
    output = files.absolute(root)
    place = files.local_path(output)
    _held[output, name] = (place / name, os.fstat(lock)) if folder is None else (place, os.fstat(folder))
    try:
        yield
    finally:
        del _held[output, name]


@contextlib.contextmanager
def _folder_locked(root: str, how: int) -> Iterator[int | None]:
    """The folder, open and locked; None if its file system cannot. Raises OutputBusy if another process has it."""
    descriptor = os.open(files.local_path(root), os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputBusy(f"{root}: in use by another process, whose lock file has been removed", _WAIT) from None
        except OSError:  # NFS, for one: there the lock file has to do
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_overlap(root: str, part: Part) -> None:
    for path, other in _part_files(root):
        if not part.overlaps(other):
            continue
        with _opened(root, path.name, fcntl.LOCK_EX) as (lock, is_free):
            if not is_free:
                raise OutputBusy(f"{root}: part {part} is in use by {_owner(lock)}, as part {other}", _WAIT)


def _part_files(root: str) -> list[tuple[Path, Part]]:
    found = ((path, _PART_FILE.fullmatch(path.name)) for path in files.local_path(root).iterdir())
    return [(path, Part(int(name[1]), int(name[2]))) for path, name in found if name and int(name[1]) < int(name[2])]


def _missing_folders(root: str) -> list[Path]:
    """The missing folders among `root` and its parents, deepest first."""
    folder = files.local_path(root)
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _unmake(root: str, made: list[Path]) -> None:
    """Remove an empty output, as far as this run created it. Call it with the lock held."""
    folder = files.local_path(root)
    with contextlib.suppress(OSError):  # it has other files or users: it stays
        if made and [path.name for path in folder.iterdir()] == [_LOCK_FILE]:
            (folder / _LOCK_FILE).unlink()  # a process that has it open will notice, see `_opened`
            for place in made:
                place.rmdir()


@contextlib.contextmanager
def _opened(root: str, name: str, how: int, wait: bool = False) -> Iterator[tuple[int, bool]]:
    """An open lock file of `root`, and whether the lock was acquired; always true with `wait`."""
    path = files.local_path(root) / name
    for tries_left in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        except OSError as problem:
            if isinstance(problem, FileNotFoundError) and tries_left:  # a refused run has just removed the folder
                continue
            raise files.unwritable(root, problem) from problem
        try:
            is_free = _take(root, descriptor, how, wait)
            if is_free and not _is_at(path, os.fstat(descriptor)):  # and here the file: nobody else would see the lock
                continue
            yield descriptor, is_free
            return
        finally:
            os.close(descriptor)
    raise OutputBusy(f"{root}: runs that are refused come and go there", _WAIT)


def _is_at(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False


def _take(root: str, descriptor: int, how: int, wait: bool) -> bool:
    """Whether the lock was acquired; always true with `wait`."""
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise files.unwritable(root, problem) from problem
        raise OutputUnwritable(
            f"{root}: its file system has no locks ({problem.strerror})",
            "Mount it with them (Lustre: -o flock), or write to another one",
        ) from problem
    return True


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _holder(root: str, whole: int) -> str:
    """The owner of the lock of `root` or of a part of it."""
    for path, part in _part_files(root):
        with contextlib.suppress(OutputUnwritable), _opened(root, path.name, fcntl.LOCK_EX) as (lock, is_free):
            if not is_free:
                return f"{_owner(lock)}, which does part {part} of it"
    return _owner(whole)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        seconds = max(0, round(time.time() - owner["since"]))
        age = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
        return f"process {owner['pid']} on {owner['host']} for {age}"
    except (ValueError, KeyError, TypeError):
        return "another process"
