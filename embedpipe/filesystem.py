"""Resolve locations to file systems, and retry requests that fail in a transient way."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from .errors import EmbedpipeError, InputError, MissingExtra, StorageFailed
from .redact import without_user_of
from .scarcity import lack_of, out_of, telling

_TRIES = 5
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_PAUSE_S = 0.1

_Read = TypeVar("_Read")


def is_local(location: str) -> bool:
    """Whether `location` is on this machine's own file system."""
    return "://" not in location or location.startswith("file://")


def local_path(location: str) -> Path:
    """The pathlib form of a local location."""
    return Path(location.removeprefix("file://"))


def open_plain(location: str, buffering: int = -1) -> BinaryIO:
    """A local file for reading. Raises InputError for what is none: a pipe would be waited for, a device be set off.

    Raises OSError like `open`, OutOfResources.
    """
    path = local_path(location)
    require_plain(location, path.stat())
    with telling():
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have been replaced since
    try:
        require_plain(location, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


def require_plain(location: str, found: os.stat_result) -> None:
    """Raise InputError unless a local location is a file, by its `stat`."""
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "a special file")
        raise InputError(
            f"{location}: {kind}, not a regular file", "Check the path; write what a pipe gives to a file first"
        )


def filesystem(location: str) -> tuple[Any, str]:
    """The fsspec file system of `location` and the path inside it."""
    try:
        with telling():
            return cast("tuple[Any, str]", fsspec.core.url_to_fs(location))
    except ImportError as problem:
        extra = location.partition("://")[0]
        how = f'pip install "embedpipe[{extra}]"' if extra == "s3" else "Install the package it names"
        raise MissingExtra(f"{location}: {problem}", how) from problem
    except ValueError as problem:
        raise InputError(f"{location}: {without_user_of(location, str(problem))}") from problem
    except Exception as problem:  # some connect as soon as they are made, and each raises its own
        if is_local(location) or isinstance(problem, EmbedpipeError):
            raise
        raise _storage_failed(location, problem) from problem


@contextlib.contextmanager
def asking(location: str) -> Iterator[None]:
    """Convert failures of requests to a remote file system about `location` to embedpipe's errors.

    Errors about the path itself (missing, a folder) pass unchanged. Raises InputError, StorageFailed.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, EmbedpipeError):
        raise
    except Exception as problem:  # every backend raises its own, such as botocore's or aiohttp's
        if is_local(location):
            raise
        if (lack := lack_of(problem)) is not None:
            raise out_of(lack) from problem
        if isinstance(problem, PermissionError):
            raise InputError(
                f"{location}: no permission: {without_user_of(location, str(problem))}", "Check the credentials"
            ) from problem
        raise _storage_failed(location, problem) from problem


def _storage_failed(location: str, problem: Exception) -> StorageFailed:
    said = without_user_of(location, str(problem).rstrip("."))
    return StorageFailed(
        f"{location}: the storage failed: {type(problem).__name__}: {said}",
        "Check endpoint, network and credentials, and run the same command again",
    )


def ask(location: str, question: Callable[[], _Read]) -> _Read:
    """The result of `question`, retried after a pause if a remote file system fails in a transient way.

    The file systems retry by themselves, but not after every failure: not in the middle of a response, for example.
    """
    if is_local(location):
        with telling():
            return question()
    for attempt in range(1, _TRIES):
        try:
            with asking(location):
                return question()
        except StorageFailed:
            time.sleep(_PAUSE_S * 2**attempt * (0.5 + random.random()))
    with asking(location):
        return question()
