"""The rows of a table of image metadata: csv, jsonl or parquet, as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ..errors import InputError
from ..parquet_tables import read_table
from . import delimited
from .delimited import DialectOptions
from .table import plain_values
from .text_file import TextFile

Fields = dict[str, Any]


def table_rows(location: str) -> tuple[list[str], Iterator[Fields]]:
    """The column names of a table, and its rows, each with all columns. Raises InputError."""
    if location.endswith(".csv"):
        return _of_csv(TextFile(location))
    return _of_jsonl(TextFile(location)) if location.endswith(".jsonl") else _of_parquet(location)


def _of_csv(file: TextFile) -> tuple[list[str], Iterator[Fields]]:
    found = delimited.detect(file, ",", DialectOptions())
    rows = delimited.rows(file, found.dialect)
    return list(found.header), (dict(zip(found.header, row, strict=True)) for row in rows)


def _of_jsonl(file: TextFile) -> tuple[list[str], Iterator[Fields]]:
    rows: list[Fields] = []
    with file.text(file.encoding(), newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as problem:
                raise InputError(f"{file.location}: line {number}: not JSON: {problem}") from problem
            if not isinstance(row, dict):
                raise InputError(f"{file.location}: line {number}: a {type(row).__name__}, not an object")
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, ({name: row.get(name) for name in names} for row in rows)


def _of_parquet(location: str) -> tuple[list[str], Iterator[Fields]]:
    try:
        table = read_table(location)
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{location}: cannot be read as parquet: {problem}", "Repair it or take it away") from problem
    names = table.column_names
    columns = [plain_values(table.column(name).combine_chunks()) for name in names]
    return names, (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
