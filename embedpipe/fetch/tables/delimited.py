"""Url tables as text: csv, tsv, and txt (one url per line). Streamed with pyarrow in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from ...errors import EmptyInput, InputError
from .type_inference import TextColumn, text_to

_BLOCK_BYTES = 8 << 20
_LINES = 20_000


def survey(stream: BinaryIO, name: str, delimiter: str) -> tuple[int, pa.Schema]:
    """Rows and column types of a delimited file. Reads all of it."""
    columns: dict[str, TextColumn] = {}
    rows = 0
    for batch in _as_text(stream, name, delimiter):
        rows += batch.num_rows
        for column, values in zip(batch.schema.names, batch.columns, strict=True):
            columns.setdefault(column, TextColumn()).see(values)
    return rows, pa.schema([(column, known.type) for column, known in columns.items()])


def batches(stream: BinaryIO, name: str, delimiter: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a delimited file, its columns as in `schema`."""
    for batch in _as_text(stream, name, delimiter):
        kinds = [schema.field(column).type for column in batch.schema.names]
        arrays = [text_to(values, kind) for values, kind in zip(batch.columns, kinds, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _as_text(stream: BinaryIO, name: str, delimiter: str) -> Iterator[pa.RecordBatch]:
    ragged: list[str] = []

    def note(row: pyarrow.csv.InvalidRow) -> str:
        where = f"row {row.number}: " if row.number is not None else ""
        ragged.append(f"{where}{row.actual_columns} fields where the header has {row.expected_columns}: {row.text!r}")
        return "error"

    try:
        header = _header(stream, name, delimiter)
        reader = pyarrow.csv.open_csv(
            stream,
            # One thread: otherwise pyarrow does not report row numbers in errors.
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=_parsing(delimiter, note),
            convert_options=pyarrow.csv.ConvertOptions(column_types={column: pa.string() for column in header}),
        )
        yield from reader
    except pa.ArrowInvalid as problem:
        raise InputError(f"{name}: {ragged[0] if ragged else problem}") from problem


def _parsing(delimiter: str, note: object = None) -> pyarrow.csv.ParseOptions:
    # Quoted captions may contain line breaks.
    return pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note)


def _header(stream: BinaryIO, name: str, delimiter: str) -> list[str]:
    first = stream.readline()
    stream.seek(0)
    if not first.strip():
        raise EmptyInput(f"{name}: empty, there is not even a header")
    reader = pyarrow.csv.open_csv(pa.BufferReader(first), parse_options=_parsing(delimiter))
    names: list[str] = reader.schema.names
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise InputError(f"{name}: the column {twice[0]} is there twice")
    return names


def survey_lines(stream: BinaryIO, name: str) -> tuple[int, pa.Schema]:
    """Rows (lines that are not blank) of a txt file, and its one column."""
    return sum(1 for line in stream if line.strip()), pa.schema([("url", pa.string())])


def line_batches(stream: BinaryIO, name: str) -> Iterator[pa.RecordBatch]:
    """The urls of a txt file."""
    # A line that is not UTF-8 is not a url; it becomes a failed row instead of ending the run.
    urls = (line.decode("utf-8", "replace").strip().lstrip("\ufeff") for line in stream if line.strip())
    while block := list(islice(urls, _LINES)):
        yield pa.RecordBatch.from_arrays([pa.array(block, pa.string())], names=["url"])
