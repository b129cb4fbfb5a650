"""Url tables as JSON: one object per line (jsonl), or one array of objects (json). Streamed."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from ...errors import InputError
from .type_inference import join_types, type_of

_ROWS = 5_000
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")

Row = dict[str, Any]


def survey(stream: BinaryIO, name: str) -> tuple[int, pa.Schema]:
    """Rows and column types of a JSON table. Reads all of it."""
    kinds: dict[str, pa.DataType] = {}
    rows = 0
    for block in _blocks(stream, name):
        rows += len(block)
        for column in dict.fromkeys(column for row in block for column in row):
            kind = type_of([row.get(column) for row in block])
            kinds[column] = (join_types(kinds[column], kind) or pa.string()) if column in kinds else kind
    stored = {column: pa.string() if pa.types.is_null(kind) else kind for column, kind in kinds.items()}
    return rows, pa.schema(list(stored.items()))


def batches(stream: BinaryIO, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a JSON table, its columns as in `schema`."""
    for block in _blocks(stream, name):
        arrays = [_array([row.get(field.name) for row in block], field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [_text(value) for value in values]
    return pa.array(values, kind)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON allows lone surrogates, UTF-8 does not


def _blocks(stream: BinaryIO, name: str) -> Iterator[list[Row]]:
    rows = _objects(stream, name)
    while block := list(islice(rows, _ROWS)):
        yield block


def _objects(stream: BinaryIO, name: str) -> Iterator[Row]:
    head = stream.readline()
    while head and not head.strip(b" \t\r\n\xef\xbb\xbf"):
        head = stream.readline()
    stream.seek(0)
    array = head.strip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")
    yield from _array_items(stream, name) if array else _lines(stream, name)


def _lines(stream: BinaryIO, name: str) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise InputError(f"{name}: line {number}: not JSON: {problem}") from problem
        yield _checked(row, f"{name}: line {number}")


def _array_items(stream: BinaryIO, name: str) -> Iterator[Row]:
    """The objects of one JSON array, with at most one chunk and one object in memory."""
    decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
    scan = json.JSONDecoder().raw_decode
    text = decode(stream.read(_CHUNK))
    at = text.index("[") + 1
    number = 0
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it can match the empty string
        if text.startswith("]", at):
            return
        try:
            row, at = scan(text, at)
        except ValueError as problem:
            more = stream.read(_CHUNK)
            if not more:
                raise InputError(f"{name}: object {number + 1}: no JSON, or cut off: {problem}") from problem
            text, at = text[at:] + decode(more), 0
            continue
        number += 1
        yield _checked(row, f"{name}: object {number}")


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object", 'A row is an object: {"url": …}')
    return row
