"""Whole parquet files as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import files


def read_table(location: str, columns: Sequence[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A parquet file, or some columns of it, with the checksums of its pages verified where it has any.

    schema: the columns and types wanted; those that the file lacks are null. Raises InputError when it cannot be
    opened, pyarrow.ArrowException or OSError when it cannot be read.

    Arrow's threads let go of a Python stream only after the table is there; a script that ends just then is aborted
    (apache/arrow issue 34314). So a local file is opened by Arrow itself, and a remote one read on this thread.
    `ParquetFile` and not `pyarrow.parquet.read_table`, which imports pandas: a quarter of a second.
    """
    wanted = schema.names if schema is not None else columns
    with files.reading(location) as stream:
        if files.is_local(location):
            with pa.OSFile(str(files.local_path(location))) as file:
                table = _read(file, wanted, use_threads=True)
        else:
            table = _read(stream, wanted, use_threads=False)
    return table if schema is None else _as(table, schema)


def _read(source: Any, columns: Sequence[str] | None, use_threads: bool) -> pa.Table:
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=use_threads) as file:
        return file.read(list(columns) if columns is not None else None, use_threads=use_threads)


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    held = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type) if field.name in held else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
