"""The rows of any table as plain values: text as it is written, and whatever JSON can represent."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ... import files
from .. import delimited
from ..table import plain_values
from . import json_table, table
from .table_file import TableFile, TableOptions

Fields = dict[str, Any]


def surveyed(file: TableFile, options: TableOptions) -> tuple[TableFile, tuple[str, ...], int]:
    """The file with its dialect, the names of its columns, and its number of blank lines.

    Reads all of a text file, once while it is unchanged.

    Raises InputError, also for two columns of one name.
    """
    return _surveyed(file, options, files.stat(file.location))


@functools.lru_cache(maxsize=64)
def _surveyed(file: TableFile, options: TableOptions, _: files.FileStat) -> tuple[TableFile, tuple[str, ...], int]:
    found = table.survey(file, options)
    return replace(file, dialect=found.dialect), tuple(found.schema.names), found.blank_lines


def plain_rows(file: TableFile) -> Iterator[Fields]:
    """The rows of a surveyed file in order, with the values that its folders carry. Raises InputError."""
    for row in _own_rows(file):
        carried = {name: value for name, value in file.partition.items() if row.get(name) is None}
        yield {**row, **carried}


def _own_rows(file: TableFile) -> Iterator[Fields]:
    if file.ending in ("csv", "tsv") and file.dialect is not None:
        header = delimited.header(file.contents, file.dialect)
        for values in delimited.rows(file.contents, file.dialect):
            yield dict(zip(header, values, strict=True))
    elif file.ending in ("json", "jsonl"):
        yield from json_table.objects(file, file.dialect)
    else:
        for batch in table.batches(file, table.survey(file, TableOptions()).schema):
            columns = [plain_values(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield dict(zip(batch.schema.names, row, strict=True))
