"""Atomic files on any fsspec path: they appear complete or not at all.

A location is a plain string, local (`data/out`) or a URL (`s3://bucket/out`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import posixpath
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from .errors import DiskFull, InputError, OutOfResources, OutputUnwritable, StorageFailed
from .filesystem import ask as ask
from .filesystem import asking, filesystem, open_plain, require_plain
from .filesystem import is_local as is_local
from .filesystem import local_path as local_path
from .scarcity import lack_of, out_of, telling

_CHUNK = 1 << 20
_TEMPORARY = ".tmp-"
_WILDCARDS = "*?[{"
_REQUESTS_AT_ONCE = 32
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class FileStat:
    """Cheap metadata of a file. `modified` is an mtime in ns or an etag: only test it for equality."""

    bytes: int
    modified: str


@dataclass(frozen=True, slots=True)
class Written:
    """A completely written file: its size and the sha256 of its bytes (hex)."""

    bytes: int
    sha256: str


def absolute(location: str) -> str:
    """`location` in a form independent of the working folder."""
    return str(local_path(location).absolute()) if is_local(location) else location


def join(location: str, *parts: str) -> str:
    """`location/part/part`, for local paths and URLs alike."""
    return posixpath.join(location.rstrip("/") or "/", *parts)


def exists(location: str) -> bool:
    """Whether a file or folder exists."""
    fs, path = filesystem(location)
    return bool(ask(location, lambda: fs.exists(path)))


def is_folder(location: str) -> bool:
    """Whether `location` is a folder (for object stores: a prefix with something in it)."""
    fs, path = filesystem(location)
    return bool(ask(location, lambda: fs.isdir(path)))


def names(folder: str, suffix: str = "") -> list[str]:
    """Sorted names of the files directly in `folder` that end in `suffix`; temporary ones are left out."""
    fs, path = filesystem(folder)
    try:
        anew = {} if is_local(folder) else {"refresh": True}
        entries = ask(folder, lambda: fs.ls(path, detail=False, **anew))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (posixpath.basename(str(entry).rstrip("/")) for entry in entries)
    return sorted(name for name in found if name.endswith(suffix) and _TEMPORARY not in name)


def sizes(folder: str) -> dict[str, int]:
    """Names and sizes of the files directly in `folder`, temporary ones among them, from one listing."""
    return {name: stat.bytes for name, stat in stats(folder).items()}


def each(root: str, read: Callable[[_Item], _Read], items: Iterable[_Item]) -> Iterator[_Read]:
    """`read` of each item, in order. If `root` is remote, many requests run concurrently."""
    if is_local(root):
        yield from map(read, items)
        return
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        asked: deque[Future[_Read]] = deque()
        try:
            for item in items:
                asked.append(pool.submit(read, item))
                if len(asked) > 2 * _REQUESTS_AT_ONCE:
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()
        finally:
            for left in asked:
                left.cancel()


def stats(folder: str) -> dict[str, FileStat]:
    """Names and `stat` results of the files directly in `folder`, from one listing."""
    fs, path = filesystem(folder)
    try:
        if is_local(folder):
            with os.scandir(local_path(folder)) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
            return {name: FileStat(stat.st_size, str(stat.st_mtime_ns)) for name, stat in found}
        listed = ask(folder, lambda: fs.ls(path, detail=True, refresh=True))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as problem:
        raise InputError(f"{folder}: {problem.strerror or problem}", "Check its permissions") from problem
    return {
        posixpath.basename(str(entry["name"])): FileStat(int(entry["size"] or 0), _mark(entry))
        for entry in listed
        if entry["type"] == "file"
    }


def _mark(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or "")


def glob(pattern: str) -> list[str]:
    """Locations matching a glob pattern, sorted, in the same form as `pattern` was given.

    Its `fixed_folder` is taken literally, whatever characters it has.
    """
    fixed = fixed_folder(pattern)
    fs, root = filesystem(fixed)
    literal = re.sub(r"([*?[])", r"[\1]", root.rstrip("/"))
    path = f"{literal}/{behind(fixed, pattern)}"
    below = len(root.rstrip("/")) + 1
    return sorted(_below(fixed, str(found)[below:]) for found in ask(fixed, lambda: fs.glob(path)))


def walk(folder: str) -> list[str]:
    """Sorted paths, relative to `folder`, of all files in it and below; temporary ones are left out."""
    fs, root = filesystem(folder)
    fs.invalidate_cache()  # of listings, to see files written by others since
    found = ask(folder, lambda: fs.find(root))
    below = len(root.rstrip("/")) + 1
    return sorted(name for entry in found if _TEMPORARY not in (name := str(entry)[below:]) and name)


def has_wildcard(location: str) -> bool:
    """Whether `location` is a pattern: glob or braces."""
    return any(mark in location for mark in _WILDCARDS)


def fixed_folder(pattern: str) -> str:
    """The folder before the first wildcard of a pattern: `data` of `data/{0..9}.tar`, `.` of `*.tar`.

    A folder that exists is no wildcard: `data [1]` of `data [1]/*.tar`.
    """
    pieces = pattern.split("/")
    taken = 0
    while taken < len(pieces) - 1 and not (
        has_wildcard(pieces[taken]) and not is_folder("/".join(pieces[: taken + 1]))
    ):
        taken += 1
    return "/".join(pieces[:taken]) or ("/" if taken else ".")


def behind(folder: str, pattern: str) -> str:
    """The part of a pattern behind its `fixed_folder`."""
    return pattern if folder == "." else pattern.removeprefix(folder).lstrip("/")


def _below(folder: str, relative: str) -> str:
    return relative if folder == "." else join(folder, relative)


def stat(location: str) -> FileStat:
    """Size and change mark of a file. Raises InputError if it does not exist."""
    fs, path = filesystem(location)
    try:
        if is_local(location):
            found = local_path(location).stat()
            require_plain(location, found)
            return FileStat(found.st_size, str(found.st_mtime_ns))
        info = ask(location, lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem
    return FileStat(int(info["size"]), _mark(info))


def has_size(location: str, size: int) -> bool:
    """Whether a file exists with that size."""
    try:
        return stat(location).bytes == size
    except InputError:
        return False


@contextlib.contextmanager
def reading(location: str) -> Iterator[BinaryIO]:
    """A binary stream of a file. Raises InputError when it cannot be opened, OutOfResources for a lack in the block."""
    try:
        if is_local(location):
            stream: Any = open_plain(location)
        else:
            fs, path = filesystem(location)
            stream = _RemoteStream(ask(location, lambda: fs.open(path, "rb")), location)
    except FileNotFoundError as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem
    except (PermissionError, IsADirectoryError, NotADirectoryError) as problem:
        raise InputError(
            f"{location}: {problem.strerror or problem}", "Check the path and its permissions"
        ) from problem
    with telling(), cast(BinaryIO, stream) as ours:
        yield ours


class _RemoteStream(io.RawIOBase):
    """A stream of a remote file that raises embedpipe's errors."""

    def __init__(self, stream: Any, location: str) -> None:
        self._stream = stream
        self._location = location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def tell(self) -> int:
        return int(self._stream.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with asking(self._location):
            return int(self._stream.seek(offset, whence))

    def read(self, size: int | None = -1) -> bytes:
        # A failed read leaves the stream position unchanged.
        return ask(self._location, lambda: bytes(self._stream.read(-1 if size is None else size)))

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def read_range(location: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, without reading others; fewer if the file ends first."""
    try:
        if is_local(location):
            with open_plain(location, buffering=0) as stream:
                stream.seek(start)
                return stream.read(stop - start)
        fs, path = filesystem(location)
        return ask(location, lambda: bytes(fs.cat_file(path, start=start, end=stop)))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem
    except (PermissionError, IsADirectoryError) as problem:
        raise InputError(
            f"{location}: {problem.strerror or problem}", "Check the path and its permissions"
        ) from problem


def read_bytes(location: str) -> bytes:
    """The contents of a file."""
    found = read_if_there(location)
    if found is None:
        raise InputError(f"{location}: no such file", "Check the path")
    return found


def read_if_there(location: str) -> bytes | None:
    """The contents of a file, or None if it does not exist; a single request for a remote one."""
    fs, path = filesystem(location)
    try:
        if is_local(location):
            with open_plain(location) as stream:
                return stream.read()
        return ask(location, lambda: bytes(fs.cat_file(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (PermissionError, IsADirectoryError) as problem:
        raise InputError(
            f"{location}: {problem.strerror or problem}", "Check the path and its permissions"
        ) from problem


def sha256(location: str) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with reading(location) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writing(location: str) -> Iterator[BinaryIO]:
    """A binary stream; the file appears at `location` only if the block ends without an exception.

    Local files are written to a temporary name, synced and renamed; object stores make an object visible when it is
    closed. Raises DiskFull or OutputUnwritable.
    """
    try:
        if is_local(location):
            with _writing_beside(local_path(location)) as stream:
                yield stream
        else:
            with _uploading(location) as stream:
                yield stream
    except OSError as problem:
        raise unwritable(location, problem) from problem


def unwritable(location: str, problem: OSError) -> OutputUnwritable | OutOfResources:
    """The error to raise for an OSError met while writing to `location`."""
    if (lack := lack_of(problem)) is not None:
        return out_of(lack)
    if problem.errno in _NO_ROOM:
        return DiskFull(
            f"{location}: no space left on the device",
            "What is committed is whole. Free some space and run the same command again",
        )
    if problem.errno in (errno.EEXIST, errno.ENOTDIR):
        return OutputUnwritable(
            f"{location}: a file is there, or on the way to it, where a folder is needed", "Give another output folder"
        )
    return OutputUnwritable(
        f"{location}: cannot write: {problem.strerror or problem}",
        "Give another output folder, or make this one writable",
    )


@contextlib.contextmanager
def _writing_beside(path: Path) -> Iterator[BinaryIO]:
    with _beside(path) as beside, beside.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary path; its file replaces `path` if the block ends without an exception.

    It has the default mode of a new file in the folder, whoever wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        mode = beside.stat().st_mode & 0o777
        yield beside
        if beside.stat().st_mode & 0o777 != mode:
            beside.chmod(mode)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once the folder's own entry is on disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _uploading(location: str) -> Iterator[BinaryIO]:
    # Spooled first: closing a remote stream after an exception would publish what was written so far.
    spool = io.BytesIO()
    yield spool
    fs, path = filesystem(location)
    try:
        ask(location, lambda: fs.pipe_file(path, spool.getvalue()))
    except InputError as problem:
        raise OutputUnwritable(problem.what, problem.remedy) from problem


def upload(place: str, location: str) -> None:
    """Copy the local file `place`, of any size, to `location`, atomically. Raises OutputUnwritable."""
    fs, path = filesystem(location)
    try:
        ask(location, lambda: fs.put_file(str(local_path(place)), path))
    except InputError as problem:
        raise OutputUnwritable(problem.what, problem.remedy) from problem


def download(location: str, place: str, wanted: Written | None = None) -> Written:
    """Copy a remote file to the local `place`, atomically, and hash it in the process.

    wanted: the expected size and checksum. Raises InputError (missing), StorageFailed (it still differs after a retry),
    DiskFull, OutputUnwritable.
    """
    fs, path = filesystem(location)

    def fetch(beside: Path) -> Written:
        try:
            fs.get_file(path, str(beside))
        except OSError as problem:
            if problem.errno in _NO_ROOM:
                raise unwritable(place, problem) from problem
            raise
        found = Written(beside.stat().st_size, sha256(str(beside)))
        if wanted not in (None, found):
            raise StorageFailed(
                f"{location}: is not what was committed there",
                "If another command writes to it now, wait for its end and run this one again",
            )
        return found

    try:
        with _beside(local_path(place)) as beside:
            return ask(location, lambda: fetch(beside))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem
    except OSError as problem:
        raise unwritable(place, problem) from problem


def copy(location: str, to: str) -> None:
    """Copy a file within one remote file system, server-side. Raises InputError if it does not exist."""
    fs, path = filesystem(location)
    target = filesystem(to)[1]
    try:
        ask(to, lambda: fs.cp_file(path, target))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem


def move(location: str, to: str) -> None:
    """Move a file within one file system, replacing `to`; atomic on a local disk."""
    if not is_local(location):
        copy(location, to)
        remove(location)
        return
    place = local_path(to)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        local_path(location).replace(place)
        _sync_folder(place.parent)
    except OSError as problem:
        raise unwritable(to, problem) from problem


def create(location: str, data: bytes) -> bool:
    """Write a file atomically unless it exists; returns False if it does. Of concurrent processes, one succeeds."""
    fs, path = filesystem(location)
    if is_local(location):
        if exists(location):
            return False
        write_bytes(location, data)  # a local output is locked
        return True
    try:
        ask(location, lambda: fs.pipe_file(path, data, mode="create"))
    except (FileExistsError, StorageFailed):  # the latter from stores that report it differently
        there = read_if_there(location)
        if there is None:
            raise
        return there == data  # it may be ours, if only the response was lost
    return True


def write_bytes(location: str, data: bytes) -> Written:
    """Write a file atomically."""
    with writing(location) as stream:
        stream.write(data)
    return Written(len(data), hashlib.sha256(data).hexdigest())


def remove(location: str) -> None:
    """Remove a file, if it exists. Raises OutputUnwritable."""
    fs, path = filesystem(location)
    try:
        with contextlib.suppress(FileNotFoundError):
            ask(location, lambda: fs.rm_file(path))
    except OSError as problem:
        raise unwritable(location, problem) from problem


def remove_folder(location: str) -> None:
    """Remove a folder with everything in it, if it exists. Raises OutputUnwritable."""
    fs, path = filesystem(location)
    try:
        fs.invalidate_cache()
        if ask(location, lambda: fs.exists(path)):
            ask(location, lambda: fs.rm(path, recursive=True))
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise unwritable(location, problem) from problem


def sweep_temporaries(folder: str, ours: Callable[[str], bool] | None = None) -> int:
    """Remove temporary files of killed writers from a local `folder` (not below). Call it only with the output locked.

    ours: whether a file name belongs to this writer, if others write to the folder concurrently. Returns the number of
    files removed.
    """
    if not is_local(folder) or not local_path(folder).is_dir():
        return 0
    leftovers = [p for p in local_path(folder).iterdir() if _TEMPORARY in p.name and p.is_file()]
    if ours is not None:
        leftovers = [path for path in leftovers if ours(path.name.partition(_TEMPORARY)[0])]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
