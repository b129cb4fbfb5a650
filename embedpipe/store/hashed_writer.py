"""Hash files while writing them, so that the manifest needs no second read."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..errors import DatasetError, InputError
from ..lock import require_held
from ..manifest import FileRecord

_WORTH_A_THREAD_BYTES = 1 << 20
_END_BYTES = 1 << 16


class _HashingStream(io.RawIOBase):
    """Forwards bytes and hashes them; keeps the first and the last 64 KiB."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._head = b""
        self._tail = b""
        self.digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        if view.nbytes < _WORTH_A_THREAD_BYTES:
            self.digest.update(view)
            self._target.write(view)
        else:  # hashing takes as long as writing, and both release the GIL
            hashing = threading.Thread(target=self.digest.update, args=(view,), name="hashing")
            hashing.start()
            try:
                self._target.write(view)
            finally:
                hashing.join()
        self.bytes += view.nbytes
        if len(self._head) < _END_BYTES:
            self._head += view[: _END_BYTES - len(self._head)]
        self._tail = bytes(view[-_END_BYTES:]) if view.nbytes >= _END_BYTES else (self._tail + view)[-_END_BYTES:]
        return int(view.nbytes)

    def record(self, path: str) -> FileRecord:
        """The manifest record of the written file."""
        return FileRecord(path, self.bytes, self.digest.hexdigest(), _ends_sha256(self._head, self._tail))


def _ends_sha256(head: bytes, tail: bytes) -> str:
    return hashlib.sha256(head + tail).hexdigest()


def write_hashed(root: str, path: str, save: Callable[[BinaryIO], None]) -> FileRecord:
    """Write the file `path` below `root` atomically; `save` writes its contents to a stream.

    Raises OutputBusy if the lock of `root` was taken away: the file may be another run's by now.
    """
    with files.writing(files.join(root, path)) as target:
        stream = _HashingStream(target)
        save(stream)  # type: ignore[arg-type]
        require_held(root)
    return stream.record(path)


def write_npy(root: str, path: str, array: np.ndarray) -> FileRecord:
    """Write an array as .npy, in C order."""
    return write_hashed(root, path, lambda stream: np.save(stream, np.ascontiguousarray(array), allow_pickle=False))


def write_parquet(root: str, path: str, table: pa.Table) -> FileRecord:
    """Write a table of metadata as parquet, with a universally supported compression."""

    def save(stream: BinaryIO) -> None:
        pq.write_table(table, stream, compression="snappy", write_page_checksum=True)

    return write_hashed(root, path, save)


def require_written(root: str, record: FileRecord) -> None:
    """Raise DatasetError unless the file's size and ends match its record: cheap, and done on every read.

    Changes between the ends are detected by `embedpipe verify --deep`, and by checksums inside the file.
    """
    location = files.join(root, record.path)
    try:
        with files.reading(location) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size != record.bytes:
                raise DatasetError(f"{location}: {size} bytes, but its manifest says {record.bytes}", REMEDY)
            if not record.ends_sha256:
                return
            stream.seek(0)
            head = stream.read(_END_BYTES)
            stream.seek(max(0, size - _END_BYTES))
            tail = stream.read(_END_BYTES)
    except (OSError, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", REMEDY) from problem
    if _ends_sha256(head, tail) != record.ends_sha256:
        raise DatasetError(f"{location}: is not the file that was written there", REMEDY)


REMEDY = "`embedpipe verify` says which shards are bad; `embedpipe.verify(repair=True)` drops them"
