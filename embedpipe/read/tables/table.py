"""Url tables: find the files, detect their format, read their rows. One registry entry per format."""

from __future__ import annotations

import contextlib
import io
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet

from ... import files, manifest
from ...errors import InputError
from .. import locations
from ..sample import LFS_REMEDY, is_lfs_pointer
from ..text_file import COMPRESSIONS, compression_of
from . import delimited, json_table
from .table_file import Surveyed, TableFile, TableOptions

_BATCH_ROWS = 8_192
_POINTER_BYTES = 64


@dataclass(frozen=True, slots=True)
class TableFormat:
    """Readers of one file format."""

    survey: Callable[[TableFile, TableOptions], Surveyed]
    batches: Callable[[TableFile, pa.Schema, str | None], Iterator[pa.RecordBatch]]


def _survey_parquet(file: TableFile, _: TableOptions) -> Surveyed:
    with _parquet(file) as table:
        return Surveyed(table.metadata.num_rows, table.schema_arrow.remove_metadata())


def _parquet_batches(file: TableFile, schema: pa.Schema, _: str | None) -> Iterator[pa.RecordBatch]:
    with _parquet(file) as table:
        # Read only the needed columns. A dot in a name would select a field inside a struct.
        some = [name for name in table.schema_arrow.names if name in schema.names and "." not in name]
        for batch in table.iter_batches(_BATCH_ROWS, columns=some if some == schema.names else None):
            yield _decodable(batch)


def _decodable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch`, with U+FFFD in place of what is not UTF-8: not every writer looks, and it is about single values."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        columns = [_as_utf8(column) if pa.types.is_string(column.type) else column for column in batch.columns]
        batch = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
        batch.validate(full=True)
    return batch


def _as_utf8(column: pa.Array) -> pa.Array:
    raw = column.cast(pa.binary()).to_pylist()
    return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], column.type)


@contextlib.contextmanager
def _parquet(file: TableFile) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with file.contents.binary() as stream:
            yield pyarrow.parquet.ParquetFile(_seekable(stream))
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{file.location}: cannot be read as parquet: {problem}") from problem


def _seekable(stream: BinaryIO) -> BinaryIO:
    return stream if stream.seekable() else io.BytesIO(stream.read())


FORMATS = {
    "parquet": TableFormat(_survey_parquet, _parquet_batches),
    "csv": TableFormat(delimited.survey, lambda file, schema, _: delimited.batches(file, schema)),
    "tsv": TableFormat(delimited.survey, lambda file, schema, _: delimited.batches(file, schema)),
    "txt": TableFormat(delimited.survey_lines, lambda file, *_: delimited.line_batches(file)),
    "json": TableFormat(json_table.survey, json_table.batches),
    "jsonl": TableFormat(json_table.survey, json_table.batches),
}
TEXTUAL = frozenset({"csv", "tsv", "txt", "json", "jsonl"})
_KNOWN = f"Known endings: {', '.join(FORMATS)}, plain or compressed ({', '.join(COMPRESSIONS)})"


def locate_tables(urls: str) -> list[TableFile]:
    """The files of a table: one file, those of a folder, or those that match a glob; sorted by name.

    A path that exists is taken as it is, whatever characters it has. In a folder, folders named `column=value` are
    looked into. Raises InputError if there are none, a folder has tables of several formats, or is embedpipe's own.
    """
    if not files.exists(urls):
        if not files.has_wildcard(urls):
            raise InputError(f"{urls}: no such file or folder", "Check the path")
        found = [_table_file(location, files.fixed_folder(urls)) for location in locations.locate(urls, ()).locations]
        if not found:
            raise InputError(f"{urls}: no file matches", "Check the pattern")
        return found
    if not files.is_folder(urls):
        return [_table_file(urls, posixpath.dirname(urls))]
    own = manifest.read_run(urls)
    if own is not None:
        raise InputError(
            f"{urls}: an output of embedpipe ({own.format}), not a url table",
            "Are the arguments swapped? The table comes first, then the output folder",
        )
    return _in_folder(urls)


def _in_folder(folder: str) -> list[TableFile]:
    names = sorted(_names_below(folder))
    endings = sorted({_ending(name)[0] for name in names})
    if not names:
        raise InputError(f"{folder}: no url table in it", _KNOWN)
    if len(endings) > 1:
        raise InputError(f"{folder}: holds {' and '.join(endings)} files", f'Give a pattern: "{folder}/*.{endings[0]}"')
    return [_table_file(files.join(folder, name), folder) for name in names]


def _names_below(folder: str) -> Iterator[str]:
    for name in files.names(folder):
        if name[0] in "._":
            continue
        if _ending(name)[0] in FORMATS:
            yield name
        elif "=" in name.strip("=") and files.is_folder(files.join(folder, name)):
            yield from (f"{name}/{below}" for below in _names_below(files.join(folder, name)))


def _table_file(location: str, base: str) -> TableFile:
    ending, compression = _ending(location)
    if ending not in FORMATS:
        raise InputError(f"{location}: not a kind of table", _KNOWN)
    below = base.rstrip("/") + "/"
    name = location.removeprefix(below) if base and base != "." else location
    return TableFile(location, name, ending, compression)


def _ending(name: str) -> tuple[str, str]:
    plain, compression = compression_of(name)
    return posixpath.splitext(plain)[1].removeprefix("."), compression


def survey(file: TableFile, options: TableOptions) -> Surveyed:
    """Rows, column types and dialect. Reads all of a text file, but only the footer of a parquet file.

    Raises InputError, also for two columns of one name.
    """
    with file.contents.binary() as stream:
        if is_lfs_pointer(stream.read(_POINTER_BYTES)):
            raise InputError(f"{file.location}: a pointer of Git LFS, not the file", LFS_REMEDY)
    found = FORMATS[file.ending].survey(file, options)
    twice = sorted({name for name in found.schema.names if found.schema.names.count(name) > 1})
    if twice:
        raise InputError(f"{file.location}: the column {twice[0]!r} is there twice", "Rename one of them")
    folders = [pa.field(name, pa.string()) for name in file.partition if name not in found.schema.names]
    return replace(found, schema=pa.schema([*found.schema, *folders]))


def batches(file: TableFile, schema: pa.Schema, captions: str | None = None) -> Iterator[pa.RecordBatch]:
    """The rows in order, with the types of `schema` (as `survey` found it, or wider). captions: their column."""
    folders = {name: value for name, value in file.partition.items() if name in schema.names}
    for batch in FORMATS[file.ending].batches(file, schema, captions):
        for name, value in folders.items():
            if name not in batch.schema.names:
                batch = batch.append_column(name, pa.array([value] * batch.num_rows, pa.string()))
            elif file.ending in ("json", "jsonl") and value is not None:  # absent there: null in every row
                values = batch.column(name).fill_null(pa.scalar(value).cast(schema.field(name).type))
                batch = batch.set_column(batch.schema.get_field_index(name), name, values)
        yield batch
