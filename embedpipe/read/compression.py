"""Compressed tars: gzip, bzip2, xz and Zstandard, recognised by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, cast

import pyarrow as pa

from ..tar import Readable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class Damaged(Exception):
    """The compressed bytes are not valid, or end early."""


def decompressed(stored: Readable, start: bytes) -> Readable:
    """The stream of uncompressed bytes of `stored`, which begins with `start`; `stored` itself if it is not compressed.

    Its `read` raises Damaged.
    """
    for magic, opened in _OPENERS:
        if start.startswith(magic):
            source = _Source(stored)
            return _Unpacked(opened(source), source)
    return stored


def _open_xz(source: _Source) -> Any:
    return lzma.LZMAFile(cast("IO[bytes]", source))


def _open_zstd(source: _Source) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")


_OPENERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda source: gzip.GzipFile(fileobj=cast("IO[bytes]", source))),
    (b"BZh", lambda source: bz2.BZ2File(cast("IO[bytes]", source))),
    (b"\xfd7zXZ\0", _open_xz),
    (b"\x28\xb5\x2f\xfd", _open_zstd),
)


class _Source:
    """A file object for the decompressors. They raise OSError for bad data; `problem` is one of reading itself."""

    closed = False

    def __init__(self, stored: Readable) -> None:
        self._stored = stored
        self.problem: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stored.read(size)
        except BaseException as problem:
            self.problem = problem
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Unpacked:
    def __init__(self, stream: Any, source: _Source) -> None:
        self._stream = stream
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as problem:
            if self._source.problem is not None:
                raise self._source.problem from None
            raise Damaged(str(problem) or "it ends early") from problem
