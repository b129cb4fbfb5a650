"""Map another tool's metadata to embedpipe's columns; its own columns are kept beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ... import files
from ...columns import EXTRA, FIXED, arrow_type
from ...errors import DatasetError, InputError

# Other tools' names for each of embedpipe's columns, best first. Without a key column, keys are made from row numbers.
_CALLED = {
    "key": ("key", "uid", "image_path", "__key__", "id"),
    "image_path": ("image_path", "key", "uid"),
    "caption": ("caption", "text", "TEXT"),
    "url": ("url", "URL"),
    "width": ("width", "WIDTH", "original_width"),
    "height": ("height", "HEIGHT", "original_height"),
    "sha256": ("sha256",),
    "similarity": ("similarity", "clip_l14_similarity_score", "clip_similarity_vitl14", "clip_b32_similarity_score"),
}
_KEY_DIGITS = 9
_REMEDY = "Fetch or write the file again"


def metadata_types(schemas: Sequence[pa.Schema], own_columns: Sequence[str]) -> dict[str, str]:
    """Type names, as in a run card, of the tables' additional columns, in order of first appearance.

    If one table has only nulls, another determines the type. Nested values become JSON strings.
    """
    found: dict[str, str | None] = {}
    for schema in schemas:
        for field in schema:
            if field.name in FIXED or field.name == EXTRA or field.name in own_columns:
                continue
            if found.get(field.name) is None:
                found[field.name] = _kind(field.type)
    return {name: kind or "string" for name, kind in found.items()}


def _kind(kind: pa.DataType) -> str | None:
    if pa.types.is_null(kind):
        return None
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "int64"
    if pa.types.is_floating(kind):
        return "double" if pa.types.is_float64(kind) else "float"
    return "string"


def read_metadata(
    location: str | None, shard: str, rows: int, others: dict[str, str], columns: tuple[str, ...] | None
) -> pa.Table:
    """Some columns (or all) of a shard's table, under embedpipe's names. Raises DatasetError if it cannot be read."""
    wanted = columns if columns is not None else (*FIXED, *others, EXTRA)
    sources = {name: _CALLED.get(name, (name,)) for name in wanted}
    table = _read(location, rows, {name for names in sources.values() for name in names})
    made = {}
    for name, called in sources.items():
        kind = arrow_type({**others, **FIXED}.get(name, "string"))
        source = next((other for other in called if other in table.column_names), None)
        if name == "src_shard":
            made[name] = pa.repeat(pa.scalar(shard), rows)
        elif name == "src_index":
            made[name] = pa.array(range(rows), pa.int64())
        elif source is not None:
            made[name] = _cast(table[source], kind, f"{location}: {source}")
        elif name in ("key", "image_path"):
            made[name] = pa.array([f"{row:0{_KEY_DIGITS}d}" for row in range(rows)])
        else:
            made[name] = pa.nulls(rows, kind)
    return pa.table(made)


def _read(location: str | None, rows: int, names: set[str]) -> pa.Table:
    if location is None:
        return pa.table({})
    try:
        with files.reading(location) as stream:
            file = pq.ParquetFile(stream)
            table = file.read(columns=[name for name in file.schema_arrow.names if name in names])
    except (OSError, pa.ArrowException, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", _REMEDY) from problem
    if table.num_columns and table.num_rows != rows:
        raise DatasetError(f"{location}: {table.num_rows} rows, there were {rows}", "Open the data set again")
    return table


def _cast(column: pa.ChunkedArray, kind: pa.DataType, what: str) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_floating(column.type) and pa.types.is_integer(kind):
        column = pc.if_else(pc.is_finite(column), column, None)  # pandas' representation of missing values
    plain = (
        pa.types.is_primitive(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    )
    if pa.types.is_string(kind) and not plain:
        return pa.chunked_array([[_json(value) for value in column.to_pylist()]], kind)
    try:
        return column.cast(kind, safe=not pa.types.is_floating(kind))
    except pa.ArrowException as problem:
        raise DatasetError(f"{what} is {column.type} and does not go into {kind}: {problem}", _REMEDY) from problem


def _json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
