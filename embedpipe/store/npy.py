"""The npy format: per shard, one .npy for each modality and a parquet of metadata, in clip-retrieval's layout."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from .. import files
from ..columns import schema
from ..errors import DatasetError, InputError
from ..manifest import FileRecord, ShardManifest
from ..parquet_tables import read_table
from ..ragged import RaggedRows
from ..scarcity import telling
from ..types import EmbeddingShard
from . import layout
from .base import Contents
from .hashed_writer import REMEDY, require_written, write_hashed, write_npy, write_parquet
from .rejects import write_rejects
from .rows import HEADERS, NpyRows, Rows


def write(
    root: str, shard: EmbeddingShard, source: str, columns: Mapping[str, str], digits: int
) -> tuple[FileRecord, ...]:
    """Write a shard's files; a shard without rows only gets its errors (empty .npy files break readers)."""
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
    """Saves [sum of lengths, w], row after row, without copying the whole array."""

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
        """[n, dim], memory-mapped if `root` is local. Raises DatasetError if it contradicts the manifest."""
        record = manifest.file(layout.embeddings(modality, manifest.number, digits))
        return _load(root, record, (manifest.rows_out, manifest.dim)) if record is not None else None

    def open_rows(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> Rows | None:
        """The same rows, for reading in pieces. Raises DatasetError if they contradict the manifest."""
        record = manifest.file(layout.embeddings(modality, manifest.number, digits))
        if record is None:
            return None
        require_written(root, record)
        rows = NpyRows(files.join(root, record.path))
        if rows.shape != (manifest.rows_out, manifest.dim):
            raise DatasetError(
                f"{rows.location}: shape {rows.shape}, but its manifest says {(manifest.rows_out, manifest.dim)}",
                REMEDY,
            )
        return rows

    def text_tokens(self, root: str, manifest: ShardManifest, digits: int) -> RaggedRows | None:
        """The states of each caption's tokens. Raises DatasetError if lengths and states are inconsistent."""
        states, lengths = (manifest.file(path) for path in layout.text_tokens(manifest.number, digits))
        if states is None or lengths is None:
            return None
        values = _load(root, states, (manifest.tokens, manifest.token_width))
        counts = np.array(_load(root, lengths, (manifest.rows_out,)))
        if counts.dtype != np.int32 or counts.min(initial=1) < 1 or counts.sum(dtype=np.int64) != len(values):
            raise DatasetError(
                f"{files.join(root, lengths.path)}: the lengths do not add up to the {len(values)} token states", REMEDY
            )
        return RaggedRows.packed(values, counts)

    def metadata(
        self, root: str, manifest: ShardManifest, digits: int, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """The metadata rows. Raises DatasetError if they contradict the manifest."""
        record = manifest.file(layout.metadata(manifest.number, digits))
        if record is None:
            raise DatasetError(f"{root}: the manifest of shard {manifest.number} lists no metadata", REMEDY)
        location = files.join(root, record.path)
        require_written(root, record)
        try:
            table = read_table(location, columns)
        except (OSError, pa.ArrowException, InputError) as problem:
            raise DatasetError(f"{location}: cannot be read: {problem}", REMEDY) from problem
        if table.num_rows != manifest.rows_out:
            raise DatasetError(f"{location}: {table.num_rows} rows, but its manifest says {manifest.rows_out}", REMEDY)
        if missing := [name for name in columns or () if name not in table.column_names]:
            raise DatasetError(f"{location}: has no column {', '.join(missing)}", REMEDY)
        return table


def _load(root: str, record: FileRecord, shape: tuple[int | None, ...]) -> np.ndarray:
    """An .npy of that shape, memory-mapped if it is local. Raises DatasetError if it is anything else.

    For a local file, the size and ends are checked; for a remote one, which is read completely, the checksum.
    """
    location = files.join(root, record.path)
    array: np.ndarray
    try:
        if files.is_local(location):
            require_written(root, record)
            with HEADERS, telling():
                array = np.load(files.local_path(location), mmap_mode="r", allow_pickle=False)
        else:
            data = files.read_bytes(location)
            if hashlib.sha256(data).hexdigest() != record.sha256:
                raise DatasetError(f"{location}: its checksum does not match: its bytes were changed", REMEDY)
            with HEADERS:
                array = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", REMEDY) from problem
    if array.shape != shape:
        raise DatasetError(f"{location}: shape {array.shape}, but its manifest says {shape}", REMEDY)
    return array


def paths(number: int, digits: int, contents: Contents) -> set[str]:
    """The files of a shard with rows, except for its rejects."""
    found = {layout.metadata(number, digits)}
    found |= {layout.embeddings(modality, number, digits) for modality in contents.modalities}
    return found | set(layout.text_tokens(number, digits)) if contents.text_tokens else found
