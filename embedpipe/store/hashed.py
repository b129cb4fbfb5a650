"""Files that are hashed while they are written: what a manifest says of them needs no second reading."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..manifest import FileRecord


class _HashingStream(io.RawIOBase):
    """Passes bytes on and hashes them on the way."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._target.write(view)
        self.digest.update(view)
        self.bytes += view.nbytes
        return int(view.nbytes)


def write_hashed(root: str, path: str, save: Callable[[BinaryIO], None]) -> FileRecord:
    """Write the file `path` below `root`, whole, with what `save` puts into a stream."""
    with files.writing(files.join(root, path)) as target:
        stream = _HashingStream(target)
        save(stream)  # type: ignore[arg-type]
    return FileRecord(path, stream.bytes, stream.digest.hexdigest())


def write_npy(root: str, path: str, array: np.ndarray) -> FileRecord:
    """Write an array as .npy, in C order."""
    return write_hashed(root, path, lambda stream: np.save(stream, np.ascontiguousarray(array), allow_pickle=False))


def write_parquet(root: str, path: str, table: pa.Table) -> FileRecord:
    """Write a table of metadata as parquet, with the compression that every reader knows."""
    return write_hashed(root, path, lambda stream: pq.write_table(table, stream, compression="snappy"))
