"""The npy format: one .npy for each modality and a parquet of metadata per shard, as clip-retrieval lays them out."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..columns import schema
from ..errors import DatasetError, InputError
from ..manifest import FileRecord, ShardManifest
from ..ragged import RaggedRows
from ..types import EmbeddingShard
from . import layout
from .hashed import write_hashed, write_npy, write_parquet
from .rejects import write_rejects
from .rows import HEADERS, NpyRows, Rows


def write(
    root: str, shard: EmbeddingShard, source: str, columns: Mapping[str, str], digits: int
) -> tuple[FileRecord, ...]:
    """Write a shard's files; a shard without rows gets none but its errors (readers stumble over empty .npy files)."""
    written = []
    if len(shard):
        for modality, array in (("image", shard.image), ("text", shard.text)):
            if array is not None:
                path = layout.embeddings(modality, shard.number, digits)
                written.append(write_npy(root, path, array))
        if shard.text_tokens is not None:
            states, lengths = layout.text_tokens(shard.number, digits)
            written.append(write_hashed(root, states, _ragged_saver(shard.text_tokens)))
            written.append(write_npy(root, lengths, shard.text_tokens.lengths))
        table = pa.table(shard.metadata, schema=schema(columns))
        written.append(write_parquet(root, layout.metadata(shard.number, digits), table))
    return (*written, *write_rejects(root, shard, source, digits))


def _ragged_saver(rows: RaggedRows) -> Callable[[BinaryIO], None]:
    """Saves [sum of lengths, w], row behind row, without a copy of the whole."""

    def save(stream: BinaryIO) -> None:
        descr = np.lib.format.dtype_to_descr(rows.values.dtype)
        shape = (rows.total, rows.width)
        np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
        for block in rows.blocks():
            stream.write(block.data)

    return save


class NpyReader:
    """Reads shards written by `write`."""

    def embeddings(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> np.ndarray | None:
        """[n, dim], memory-mapped when `root` is local. Raises DatasetError when it is not what the manifest says."""
        path = layout.embeddings(modality, manifest.number, digits)
        if path not in {record.path for record in manifest.files}:
            return None
        return _load(files.join(root, path), (manifest.rows_out, manifest.dim))

    def open_rows(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> Rows | None:
        """The same rows, to be read piece by piece. Raises DatasetError when they are not what the manifest says."""
        path = layout.embeddings(modality, manifest.number, digits)
        if path not in {record.path for record in manifest.files}:
            return None
        rows = NpyRows(files.join(root, path))
        if rows.shape != (manifest.rows_out, manifest.dim):
            raise DatasetError(
                f"{rows.location}: shape {rows.shape}, but its manifest says {(manifest.rows_out, manifest.dim)}",
                _remedy(),
            )
        return rows

    def text_tokens(self, root: str, manifest: ShardManifest, digits: int) -> RaggedRows | None:
        """The states of each caption's tokens. Raises DatasetError when lengths and states do not fit each other."""
        states, lengths = layout.text_tokens(manifest.number, digits)
        if not {states, lengths} & {record.path for record in manifest.files}:
            return None
        values = _load(files.join(root, states), (manifest.tokens, manifest.token_width))
        counts = np.array(_load(files.join(root, lengths), (manifest.rows_out,)))
        if counts.dtype != np.int32 or counts.min(initial=1) < 1 or counts.sum(dtype=np.int64) != len(values):
            raise DatasetError(
                f"{files.join(root, lengths)}: the lengths do not add up to the {len(values)} token states", _remedy()
            )
        return RaggedRows.packed(values, counts)

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


def _load(location: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An .npy of that shape, memory-mapped when it is local. Raises DatasetError when it is no such thing."""
    array: np.ndarray
    try:
        if files.is_local(location):
            with HEADERS:
                array = np.load(files.local_path(location), mmap_mode="r", allow_pickle=False)
        else:
            data = io.BytesIO(files.read_bytes(location))
            with HEADERS:
                array = np.load(data, allow_pickle=False)
    except (OSError, ValueError, EOFError, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", _remedy()) from problem
    if array.shape != shape:
        raise DatasetError(f"{location}: shape {array.shape}, but its manifest says {shape}", _remedy())
    return array


def _remedy() -> str:
    return "Run `embedpipe verify` to see which shards are bad"
