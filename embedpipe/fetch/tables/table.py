"""Url tables: find the files, detect their format, read their rows. One registry entry per format, plain or .gz."""

from __future__ import annotations

import contextlib
import gzip
import posixpath
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from ... import files
from ...errors import InputError
from . import delimited, json_table

_BATCH_ROWS = 8_192
_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a url table. `name` is its path relative to the input folder, so it does not change if that moves."""

    location: str
    name: str
    ending: str
    gzipped: bool


@dataclass(frozen=True, slots=True)
class TableFormat:
    """Readers of one file format: (stream, name) → rows and schema; (stream, name, schema) → batches."""

    survey: Callable[[BinaryIO, str], tuple[int, pa.Schema]]
    batches: Callable[[BinaryIO, str, pa.Schema], Iterator[pa.RecordBatch]]


def _survey_parquet(stream: BinaryIO, name: str) -> tuple[int, pa.Schema]:
    file = pyarrow.parquet.ParquetFile(stream)
    return file.metadata.num_rows, file.schema_arrow.remove_metadata()


def _parquet_batches(stream: BinaryIO, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    file = pyarrow.parquet.ParquetFile(stream)
    # Read only the needed columns. A dot in a name would select a field inside a struct.
    some = [name for name in file.schema_arrow.names if name in schema.names and "." not in name]
    yield from file.iter_batches(_BATCH_ROWS, columns=some if some == schema.names else None)


def _delimited_by(delimiter: str) -> TableFormat:
    return TableFormat(
        lambda stream, name: delimited.survey(stream, name, delimiter),
        lambda stream, name, schema: delimited.batches(stream, name, delimiter, schema),
    )


FORMATS = {
    "parquet": TableFormat(_survey_parquet, _parquet_batches),
    "csv": _delimited_by(","),
    "tsv": _delimited_by("\t"),
    "txt": TableFormat(delimited.survey_lines, lambda stream, name, _: delimited.line_batches(stream, name)),
    "json": TableFormat(json_table.survey, json_table.batches),
    "jsonl": TableFormat(json_table.survey, json_table.batches),
}
TEXTUAL = frozenset({"csv", "tsv", "txt", "json", "jsonl"})


def locate_tables(urls: str) -> list[TableFile]:
    """The files of a table: one file, those of a folder, or those that match a glob; sorted by name.

    Raises InputError if there are none, or a folder has tables of several formats.
    """
    if _GLOB_CHARACTERS & set(urls):
        base = posixpath.dirname(urls[: min(urls.index(c) for c in _GLOB_CHARACTERS & set(urls))])
        found = [_table_file(location, base) for location in files.glob(urls)]
        if not found:
            raise InputError(f"{urls}: no file matches", "Check the pattern")
        return found
    if not files.exists(urls):
        raise InputError(f"{urls}: no such file or folder", "Check the path")
    if not files.is_folder(urls):
        return [_table_file(urls, posixpath.dirname(urls))]
    return _in_folder(urls)


def _in_folder(folder: str) -> list[TableFile]:
    names = [name for name in files.names(folder) if _ending(name)[0] in FORMATS and name[0] not in "._"]
    endings = sorted({_ending(name)[0] for name in names})
    if not names:
        raise InputError(f"{folder}: no url table in it", f"Known endings: {', '.join(FORMATS)}, plain or with .gz")
    if len(endings) > 1:
        raise InputError(f"{folder}: holds {' and '.join(endings)} files", f'Give a pattern: "{folder}/*.{endings[0]}"')
    return [_table_file(files.join(folder, name), folder) for name in names]


def _table_file(location: str, base: str) -> TableFile:
    ending, gzipped = _ending(location)
    if ending not in FORMATS:
        raise InputError(f"{location}: not a kind of table", f"Known endings: {', '.join(FORMATS)}, plain or with .gz")
    name = location.removeprefix(base.rstrip("/") + "/") if base else location
    return TableFile(location, name, ending, gzipped)


def _ending(name: str) -> tuple[str, bool]:
    plain = name.lower().removesuffix(".gz")
    return posixpath.splitext(plain)[1].removeprefix("."), plain != name.lower()


def survey(file: TableFile) -> tuple[int, pa.Schema]:
    """The number of rows and the column types. Reads all of a text file, but only the footer of a parquet file."""
    with _opened(file) as stream:
        return FORMATS[file.ending].survey(stream, file.location)


def batches(file: TableFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows in order, with the types of `schema` (as `survey` found it, or wider)."""
    with _opened(file) as stream:
        yield from FORMATS[file.ending].batches(stream, file.location, schema)


@contextlib.contextmanager
def _opened(file: TableFile) -> Iterator[BinaryIO]:
    try:
        with files.reading(file.location) as stream:
            if file.gzipped:
                with gzip.open(stream) as inside:
                    yield cast(BinaryIO, inside)
            else:
                yield stream
    except (pa.ArrowException, gzip.BadGzipFile, zlib.error, EOFError) as problem:
        raise InputError(f"{file.location}: cannot be read as {file.ending}: {problem}") from problem
