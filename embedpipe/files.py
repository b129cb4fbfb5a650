"""Files on any fsspec path: they appear whole or not at all.

A location is a plain string, local (`data/out`) or a URL (`s3://bucket/out`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from .errors import DiskFull, InputError, OutputUnwritable

_CHUNK = 1 << 20
_TEMPORARY = ".tmp-"
_WILDCARDS = "*?[{"


@dataclass(frozen=True, slots=True)
class FileStat:
    """What a file system tells cheaply about a file. `modified` is an mtime in ns or an etag: compare, never order."""

    bytes: int
    modified: str


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written whole: its size and the sha256 of its bytes (hex)."""

    bytes: int
    sha256: str


def is_local(location: str) -> bool:
    """Whether `location` is on this machine's own file system."""
    return "://" not in location or location.startswith("file://")


def local_path(location: str) -> Path:
    """The pathlib form of a local location."""
    return Path(location.removeprefix("file://"))


def absolute(location: str) -> str:
    """`location` so that it means the same from any working folder."""
    return str(local_path(location).absolute()) if is_local(location) else location


def join(location: str, *parts: str) -> str:
    """`location/part/part`, for local paths and URLs alike."""
    return posixpath.join(location.rstrip("/") or "/", *parts)


def _filesystem(location: str) -> tuple[Any, str]:
    """The fsspec file system of `location` and the path inside it."""
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(location))
    except (ValueError, ImportError) as problem:
        raise InputError(f"{location}: {problem}") from problem


def exists(location: str) -> bool:
    """Whether a file or a folder is there."""
    fs, path = _filesystem(location)
    return bool(fs.exists(path))


def is_folder(location: str) -> bool:
    """Whether `location` is a folder (for object stores: a prefix with something in it)."""
    fs, path = _filesystem(location)
    return bool(fs.isdir(path))


def names(folder: str, suffix: str = "") -> list[str]:
    """Sorted names of the files directly in `folder` that end in `suffix`; temporary ones are left out."""
    fs, path = _filesystem(folder)
    try:
        entries = fs.ls(path, detail=False, refresh=True) if not is_local(folder) else fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (posixpath.basename(str(entry).rstrip("/")) for entry in entries)
    return sorted(name for name in found if name.endswith(suffix) and _TEMPORARY not in name)


def glob(pattern: str) -> list[str]:
    """Locations matching a glob pattern, sorted, in the same form as `pattern` was given."""
    fixed = fixed_folder(pattern)
    fs, root = _filesystem(fixed)
    _, path = _filesystem(pattern)
    below = len(root.rstrip("/")) + 1
    return sorted(_below(fixed, str(found)[below:]) for found in fs.glob(path))


def has_wildcard(location: str) -> bool:
    """Whether `location` is a pattern: glob or braces."""
    return any(mark in location for mark in _WILDCARDS)


def fixed_folder(pattern: str) -> str:
    """The folder before the first wildcard of a pattern: `data` of `data/{0..9}.tar`, `.` of `*.tar`."""
    first = min(pattern.index(mark) for mark in _WILDCARDS if mark in pattern)
    folder, slash, _ = pattern[:first].rpartition("/")
    return folder or slash or "."


def _below(folder: str, relative: str) -> str:
    return relative if folder == "." else join(folder, relative)


def stat(location: str) -> FileStat:
    """Size and change mark of a file. Raises InputError when it is not there."""
    fs, path = _filesystem(location)
    try:
        if is_local(location):
            found = local_path(location).stat()
            return FileStat(found.st_size, str(found.st_mtime_ns))
        info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem
    mark = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
    return FileStat(int(info["size"]), str(mark))


def has_size(location: str, size: int) -> bool:
    """Whether a file is there and of that size."""
    try:
        return stat(location).bytes == size
    except InputError:
        return False


@contextlib.contextmanager
def reading(location: str) -> Iterator[BinaryIO]:
    """A binary stream of a file. Raises InputError when it cannot be opened."""
    fs, path = _filesystem(location)
    try:
        stream = fs.open(path, "rb")
    except FileNotFoundError as problem:
        raise InputError(f"{location}: no such file", "Check the path") from problem
    except (PermissionError, IsADirectoryError, NotADirectoryError) as problem:
        raise InputError(f"{location}: {problem.strerror or problem}") from problem
    with stream:
        yield stream


def read_bytes(location: str) -> bytes:
    """The whole of a file."""
    with reading(location) as stream:
        return stream.read()


def sha256(location: str) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with reading(location) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writing(location: str) -> Iterator[BinaryIO]:
    """A binary stream whose file appears under `location` when the block ends without an exception, and else never.

    Local files are written beside, synced and renamed; object stores make an object visible when it is closed.
    Raises DiskFull or OutputUnwritable.
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


def unwritable(location: str, problem: OSError) -> OutputUnwritable:
    """The error to raise for an OSError met while writing to `location`."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"{location}: no space left on the device",
            "What is committed is whole. Free some space and run the same command again",
        )
    return OutputUnwritable(
        f"{location}: cannot write: {problem.strerror or problem}",
        "Give another output folder, or make this one writable",
    )


@contextlib.contextmanager
def _writing_beside(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
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
    fs, path = _filesystem(location)
    fs.pipe_file(path, spool.getvalue())


def write_bytes(location: str, data: bytes) -> Written:
    """Write a file whole."""
    with writing(location) as stream:
        stream.write(data)
    return Written(len(data), hashlib.sha256(data).hexdigest())


def remove(location: str) -> None:
    """Remove a file; that it is not there is fine."""
    fs, path = _filesystem(location)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def sweep_temporaries(folder: str) -> int:
    """Remove what killed writers left in a local `folder` (not below). Call it only while holding the output's lock.

    Returns how many files were removed.
    """
    if not is_local(folder) or not local_path(folder).is_dir():
        return 0
    leftovers = [p for p in local_path(folder).iterdir() if _TEMPORARY in p.name and p.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
