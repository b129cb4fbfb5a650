"""The npy format: one .npy for each modality and a parquet of metadata per shard, as clip-retrieval lays them out."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..columns import schema
from ..errors import DatasetError
from ..manifest import FileRecord, ShardManifest
from ..types import EmbeddingShard
from . import layout

_ERROR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("src_shard", pa.string()),
        ("src_index", pa.int64()),
        ("stage", pa.string()),
        ("error_class", pa.string()),
        ("message", pa.string()),
    ]
)


def write(
    root: str, shard: EmbeddingShard, source: str, columns: Mapping[str, str], digits: int
) -> tuple[FileRecord, ...]:
    """Write a shard's files; a shard without rows gets none but its errors (readers stumble over empty .npy files)."""
    written = []
    if len(shard):
        for modality, array in (("image", shard.image), ("text", shard.text)):
            if array is not None:
                path = layout.embeddings(modality, shard.number, digits)
                written.append(_write(root, path, _npy_saver(array)))
        table = pa.table(shard.metadata, schema=schema(columns))
        written.append(_write(root, layout.metadata(shard.number, digits), _parquet_saver(table)))
    if shard.rejects:
        rejects = sorted(shard.rejects, key=lambda reject: reject.index)
        rows = [(r.key, source, r.index, r.stage, r.error_class, r.message) for r in rejects]
        table = pa.table(list(map(list, zip(*rows, strict=True))), schema=_ERROR_SCHEMA)
        written.append(_write(root, layout.errors(shard.number, digits), _parquet_saver(table)))
    return tuple(written)


def _npy_saver(array: np.ndarray) -> Callable[[BinaryIO], None]:
    return lambda stream: np.save(stream, np.ascontiguousarray(array), allow_pickle=False)


def _parquet_saver(table: pa.Table) -> Callable[[BinaryIO], None]:
    return lambda stream: pq.write_table(table, stream, compression="snappy")


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


def _write(root: str, path: str, save: Callable[[BinaryIO], None]) -> FileRecord:
    with files.writing(files.join(root, path)) as target:
        stream = _HashingStream(target)
        save(stream)  # type: ignore[arg-type]
    return FileRecord(path, stream.bytes, stream.digest.hexdigest())


class NpyReader:
    """Reads shards written by `write`."""

    def embeddings(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> np.ndarray | None:
        """[n, dim], memory-mapped when `root` is local. Raises DatasetError when it is not what the manifest says."""
        path = layout.embeddings(modality, manifest.number, digits)
        if path not in {record.path for record in manifest.files}:
            return None
        location = files.join(root, path)
        array: np.ndarray
        try:
            if files.is_local(location):
                array = np.load(files.local_path(location), mmap_mode="r", allow_pickle=False)
            else:
                array = np.load(io.BytesIO(files.read_bytes(location)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise DatasetError(f"{location}: cannot be read: {problem}", _remedy()) from problem
        if array.shape != (manifest.rows_out, manifest.dim):
            raise DatasetError(
                f"{location}: shape {array.shape}, but its manifest says ({manifest.rows_out}, {manifest.dim})",
                _remedy(),
            )
        return array

    def metadata(
        self, root: str, manifest: ShardManifest, digits: int, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """The metadata rows. Raises DatasetError when they are not as many as the manifest says."""
        location = files.join(root, layout.metadata(manifest.number, digits))
        try:
            with files.reading(location) as stream:
                table = pq.read_table(stream, columns=list(columns) if columns is not None else None)
        except (OSError, pa.ArrowException) as problem:
            raise DatasetError(f"{location}: cannot be read: {problem}", _remedy()) from problem
        if table.num_rows != manifest.rows_out:
            raise DatasetError(
                f"{location}: {table.num_rows} rows, but its manifest says {manifest.rows_out}", _remedy()
            )
        return table


def _remedy() -> str:
    return "Run `embedpipe verify` to see which shards are bad"
