"""Url tables as text: csv, tsv, and txt (one url per line)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from ...errors import InputError
from .. import delimited
from ..delimited import Dialect
from . import earlier
from .table_file import Surveyed, TableFile, TableOptions
from .type_inference import TextColumn, text_to

_ROWS = 20_000
_USUAL = {"csv": ",", "tsv": "\t"}


def survey(file: TableFile, options: TableOptions) -> Surveyed:
    """Dialect, rows and columns of a delimited file. Columns are text, unless types are to be inferred."""
    found = delimited.detect(file.contents, _USUAL[file.ending], options.dialect)
    columns = {name: TextColumn() for name in found.header}
    if options.infer_types:
        for batch in _as_text(file, found.dialect, found.header):
            for name, values in zip(found.header, batch, strict=True):
                columns[name].see(values)
    schema = pa.schema([(name, column.type) for name, column in columns.items()])
    return Surveyed(found.rows, schema, found.dialect, found.blank_lines)


def batches(file: TableFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a delimited file, its columns as in `schema`; those that are not in it are left out."""
    if file.dialect is None:
        with file.contents.binary() as stream:
            yield from earlier.lenient_batches(stream, file.location, _USUAL[file.ending], schema)
        return
    header = delimited.header(file.contents, file.dialect)
    wanted = [name for name in header if name in schema.names]
    for batch in _as_text(file, file.dialect, header):
        arrays = [text_to(batch[header.index(name)], schema.field(name).type) for name in wanted]
        yield pa.RecordBatch.from_arrays(arrays, names=wanted)


def _as_text(file: TableFile, dialect: Dialect, header: tuple[str, ...]) -> Iterator[list[pa.Array]]:
    rows = delimited.rows(file.contents, dialect)
    while block := list(islice(rows, _ROWS)):
        yield [pa.array(values, pa.string()) for values in zip(*block, strict=True)]


def survey_lines(file: TableFile, options: TableOptions) -> Surveyed:
    """Rows (lines that are not blank) of a txt file, and its one column."""
    dialect = Dialect("", "none", file.contents.encoding(options.dialect.encoding))
    rows = blank = 0
    with file.contents.text(dialect.encoding) as lines:
        for line in lines:
            blank += not line.strip()
            rows += bool(line.strip())
            if rows == 1 and "\t" in line.strip():
                raise InputError(
                    f"{file.location}: has columns, and a .txt is read as one url per line",
                    "Give the file the ending .tsv",
                )
    return Surveyed(rows, pa.schema([("url", pa.string())]), dialect, blank)


def line_batches(file: TableFile) -> Iterator[pa.RecordBatch]:
    """The urls of a txt file."""
    if file.dialect is None:
        with file.contents.binary() as stream:
            yield from earlier.lenient_lines(stream)
        return
    with file.contents.text(file.dialect.encoding) as lines:
        urls = (url for line in lines if (url := line.strip()))
        while block := list(islice(urls, _ROWS)):
            yield pa.RecordBatch.from_arrays([pa.array(block, pa.string())], names=["url"])
