"""The parquet format: one file per shard, embeddings as fixed-size lists beside the metadata columns.

    image_embedding, text_embedding   fixed_size_list<float16 | float32>[dim]
    text_tokens                       list<fixed_size_list<float16 | float32>[w]>, if requested
    …                                 the metadata columns

Embeddings are stored plain: dictionary encoding and compression gain nothing on them and are slow. Parquet cannot be
memory-mapped as an array: a column is decoded one row group at a time, and the data set caches decoded columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
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
from .base import Contents
from .hashed_writer import REMEDY, require_written, write_hashed
from .rejects import write_rejects
from .rows import ParquetRows, Rows

EMBEDDINGS = {"image": "image_embedding", "text": "text_embedding"}
TEXT_TOKENS = "text_tokens"
OWN_COLUMNS = (*EMBEDDINGS.values(), TEXT_TOKENS)

# Written and decoded by row group, so that no column is in memory twice.
_ROWS_IN_GROUP = 1000


def write(
    root: str, shard: EmbeddingShard, source: str, columns: Mapping[str, str], digits: int
) -> tuple[FileRecord, ...]:
    """Write a shard's file, and that of its rejects; a shard without rows only has the latter."""
    rejects = write_rejects(root, shard, source, digits)
    if not len(shard):
        return rejects
    path = layout.metadata_path(shard.number, digits)
    metadata = pa.table(shard.metadata, schema=schema(columns))
    arrays = {EMBEDDINGS["image"]: shard.image, EMBEDDINGS["text"]: shard.text}
    return (write_hashed(root, path, lambda stream: save_table(stream, arrays, metadata, shard.text_tokens)), *rejects)


def save_table(
    stream: BinaryIO,
    arrays: Mapping[str, np.ndarray | None],
    metadata: pa.Table,
    text_tokens: RaggedRows | None = None,
) -> None:
    """Write rows as a parquet file: arrays [n, dim] as list columns under their names, token states, and metadata.

    None values get no column. No metadata column may have the name of another column.
    """
    about = metadata.schema
    options = {"use_dictionary": about.names, "write_statistics": about.names, "write_page_checksum": True}
    compression = dict.fromkeys(about.names, "snappy")
    first = _group(arrays, metadata, text_tokens, 0)
    with pq.ParquetWriter(stream, first.schema, compression=compression, **options) as writer:
        for start in range(0, metadata.num_rows, _ROWS_IN_GROUP):
            writer.write_table(_group(arrays, metadata, text_tokens, start))


def _group(
    arrays: Mapping[str, np.ndarray | None], metadata: pa.Table, text_tokens: RaggedRows | None, start: int
) -> pa.Table:
    """The rows of one row group, which limits the token states copied at a time."""
    rows = slice(start, start + _ROWS_IN_GROUP)
    found = {name: as_lists(array[rows]) for name, array in arrays.items() if array is not None}
    if text_tokens is not None:
        found[TEXT_TOKENS] = _ragged_lists(text_tokens.take(np.arange(len(text_tokens))[rows]))
    fields = [pa.field(name, column.type, nullable=False) for name, column in found.items()]
    about = metadata.slice(start, _ROWS_IN_GROUP)
    return pa.Table.from_arrays([*found.values(), *about.columns], schema=pa.schema([*fields, *about.schema]))


def as_lists(array: np.ndarray) -> pa.FixedSizeListArray:
    """[n, width] as n lists of that width, without a copy."""
    numbers = pa.array(np.ascontiguousarray(array).reshape(-1))
    element = pa.field("element", numbers.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(numbers, type=pa.list_(element, array.shape[1]))


def _ragged_lists(rows: RaggedRows) -> pa.Array:
    states = as_lists(rows.flat())
    ends = np.cumsum(rows.lengths, dtype=np.int32)
    element = pa.field("element", states.type, nullable=False)
    return pa.ListArray.from_arrays(pa.array(np.append(np.int32(0), ends)), states, type=pa.list_(element))


class ParquetReader:
    """Reads shards written by `write`: whole columns, and only requested ones."""

    def embeddings(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> np.ndarray | None:
        """[n, dim] in memory. Raises DatasetError if it contradicts the manifest."""
        name = EMBEDDINGS[modality]
        with _opened(root, manifest, digits) as (location, file):
            if file is None or name not in file.schema_arrow.names:
                return None
            out = _room(file.schema_arrow.field(name).type, manifest.rows_out, manifest.dim, f"{location}: {name}")
            filled = 0
            for lists in _groups(file, name, location):
                out[filled : filled + len(lists)] = _numbers(lists, location)
                filled += len(lists)
        return out

    def open_rows(self, root: str, manifest: ShardManifest, modality: str, digits: int) -> Rows | None:
        """The same rows, for reading in pieces. Raises DatasetError if they contradict the manifest."""
        name = EMBEDDINGS[modality]
        with _opened(root, manifest, digits) as (location, file):
            if file is None or name not in file.schema_arrow.names:
                return None
        rows = ParquetRows(location, name)
        if rows.shape[1] != manifest.dim:
            rows.close()
            raise DatasetError(f"{location}: {name} is {rows.shape[1]} wide, its manifest says {manifest.dim}", REMEDY)
        return rows

    def text_tokens(self, root: str, manifest: ShardManifest, digits: int) -> RaggedRows | None:
        """The states of each caption's tokens, in memory. Raises DatasetError if they contradict the manifest."""
        with _opened(root, manifest, digits) as (location, file):
            if file is None or TEXT_TOKENS not in file.schema_arrow.names:
                return None
            kind = file.schema_arrow.field(TEXT_TOKENS).type
            states = kind.value_type if pa.types.is_list(kind) else None
            out = _room(states, manifest.tokens, manifest.token_width, f"{location}: {TEXT_TOKENS}")
            lengths, filled = [], 0
            for lists in _groups(file, TEXT_TOKENS, location):
                found = _numbers(lists.flatten(), location)
                lengths.append(np.diff(lists.offsets.to_numpy()))
                kept = found[: len(out) - filled]
                out[filled : filled + len(kept)] = kept
                filled += len(kept)
        counts = np.concatenate(lengths)
        if counts.min(initial=1) < 1 or counts.sum(dtype=np.int64) != len(out):
            raise DatasetError(
                f"{location}: the lengths do not add up to the {len(out)} token states of its manifest", REMEDY
            )
        return RaggedRows.packed(out, counts)

    def metadata(
        self, root: str, manifest: ShardManifest, digits: int, columns: tuple[str, ...] | None = None
    ) -> pa.Table:
        """The metadata rows, without the embeddings. Raises DatasetError if there is no file."""
        with _opened(root, manifest, digits) as (location, file):
            if file is None:
                raise DatasetError(f"{location}: not listed in its manifest", REMEDY)
            there = [name for name in file.schema_arrow.names if name not in OWN_COLUMNS]
            missing = [name for name in columns or () if name not in there]
            if missing:
                raise DatasetError(f"{location}: has no column {', '.join(missing)}", REMEDY)
            return file.read(columns=list(columns) if columns is not None else there)


@contextlib.contextmanager
def _opened(root: str, manifest: ShardManifest, digits: int) -> Iterator[tuple[str, pq.ParquetFile | None]]:
    """(the path of a shard's file, the open file; None if the manifest lists none). Errors become DatasetError."""
    path = layout.metadata_path(manifest.number, digits)
    location = files.join(root, path)
    record = manifest.file(path)
    if record is None:
        yield location, None
        return
    require_written(root, record)
    try:
        with files.reading(location) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            if file.metadata.num_rows != manifest.rows_out:
                raise DatasetError(
                    f"{location}: {file.metadata.num_rows} rows, but its manifest says {manifest.rows_out}", REMEDY
                )
            yield location, file
    except (OSError, pa.ArrowException, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", REMEDY) from problem


def _groups(file: pq.ParquetFile, name: str, location: str) -> Iterator[pa.Array]:
    """One column, by row group."""
    for group in range(file.num_row_groups):
        for chunk in file.read_row_group(group, columns=[name]).column(0).chunks:
            if chunk.null_count:
                raise DatasetError(f"{location}: {chunk.null_count} rows of {name} are null", REMEDY)
            yield chunk


def _room(kind: pa.DataType | None, rows: int | None, width: int | None, what: str) -> np.ndarray:
    """An array for `rows` lists of that type. Raises DatasetError if their width contradicts the manifest."""
    if rows is None or kind is None or not pa.types.is_fixed_size_list(kind) or kind.list_size != width:
        raise DatasetError(f"{what}: of type {kind}, but its manifest says {rows} rows, {width} wide", REMEDY)
    return np.empty((rows, kind.list_size), kind.value_type.to_pandas_dtype())


def _numbers(lists: pa.FixedSizeListArray, location: str) -> np.ndarray:
    """[n, width] of n lists, a view into Arrow's memory."""
    numbers = lists.flatten()
    if numbers.null_count:
        raise DatasetError(f"{location}: {numbers.null_count} numbers are null", REMEDY)
    found: np.ndarray = numbers.to_numpy(zero_copy_only=True).reshape(len(lists), lists.type.list_size)
    return found


def paths(number: int, digits: int, contents: Contents) -> set[str]:
    """The files of a shard with rows, except for its rejects."""
    return {layout.metadata_path(number, digits)}
