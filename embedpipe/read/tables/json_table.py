"""Url tables as JSON: one object per line (jsonl), or one array of objects (json). Streamed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from ...errors import InputError
from ..delimited import Dialect
from ..sample import first_caption
from ..text_file import UTF_8
from .json_types import NULL, JsonType, type_of_all, wider
from .table_file import Surveyed, TableFile, TableOptions

_ROWS = 5_000
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")

Row = dict[str, Any]


def survey(file: TableFile, options: TableOptions) -> Surveyed:
    """Rows and column types of a JSON table. Reads all of it."""
    dialect = Dialect("", "none", file.contents.encoding(options.dialect.encoding))
    kinds: dict[str, JsonType] = {}
    count = 0
    for block in _blocks(file, dialect):
        count += len(block)
        for column in dict.fromkeys(column for row in block for column in row):
            kind = type_of_all([row.get(column) for row in block])
            kinds[column] = wider(kinds.get(column, NULL), kind)
    for column in kinds:
        if _storable(column) != column:
            raise InputError(f"{file.location}: the field {column!r} has a name that is no text", "Rename it")
    schema = pa.schema([(column, kind.arrow()) for column, kind in kinds.items()])
    return Surveyed(count, schema, dialect)


def batches(file: TableFile, schema: pa.Schema, captions: str | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a JSON table, its columns as in `schema`. captions: the column in which a list stands for its first.

    If that column has the type of lists, they are left whole.
    """
    for block in _blocks(file, file.dialect):
        try:
            arrays = [_array(_values(block, field, captions), field.type) for field in schema]
        except (pa.ArrowException, OverflowError) as problem:
            raise InputError(f"{file.location}: does not fit the types of earlier files: {problem}") from problem
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _values(block: list[Row], field: pa.Field, captions: str | None) -> list[Any]:
    values = [row.get(field.name) for row in block]
    if field.name != captions or not pa.types.is_string(field.type):
        return values
    return [first_caption(value) if isinstance(value, list) else value for value in values]


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [_text(value) for value in values]
    return pa.array(values, kind)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return _storable(text)


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON allows lone surrogates, UTF-8 does not


def _blocks(file: TableFile, dialect: Dialect | None) -> Iterator[list[Row]]:
    found = objects(file, dialect)
    while block := list(islice(found, _ROWS)):
        yield block


def objects(file: TableFile, dialect: Dialect | None) -> Iterator[Row]:
    """The objects of a JSON table, one by one, as they are written. Raises InputError."""
    # A plan without a dialect is of a version that let the last of two equal fields win.
    decoder = json.JSONDecoder() if dialect is None else _STRICT
    encoding = UTF_8 if dialect is None else dialect.encoding
    if file.contents.head(encoding).lstrip().startswith("["):
        yield from _array_items(file.contents.pieces(encoding, _CHUNK), file.location, decoder)
    else:
        yield from _lines(file, encoding, decoder)


def _lines(file: TableFile, encoding: str, decoder: json.JSONDecoder) -> Iterator[Row]:
    with file.contents.text(encoding, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file.location}: line {number}"
            try:
                row = decoder.decode(line)
            except _Twice as problem:
                raise InputError(f"{where}: {problem}") from None
            except (ValueError, RecursionError) as problem:
                raise InputError(f"{where}: not JSON: {problem}") from problem
            yield _checked(row, where)


def _array_items(pieces: Iterator[str], name: str, decoder: json.JSONDecoder) -> Iterator[Row]:
    """The objects of one JSON array, with at most one chunk and one object in memory."""
    text = next(piece for piece in pieces if piece.strip())
    at = text.index("[") + 1
    number = 0
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it can match the empty string
        if text.startswith("]", at):
            rest = next((left for piece in (text[at + 1 :], *pieces) if (left := piece.strip())), "")
            if rest and decoder is _STRICT:
                raise InputError(f"{name}: text behind the end of the array: {rest[:80]!r}", "Give one array")
            return
        try:
            row, at = decoder.raw_decode(text, at)
        except _Twice as problem:
            raise InputError(f"{name}: object {number + 1}: {problem}") from None
        except RecursionError as problem:
            raise InputError(f"{name}: object {number + 1}: {problem}") from problem
        except ValueError as problem:
            more = next(pieces, "")
            if not more:
                raise InputError(f"{name}: object {number + 1}: no JSON, or cut off: {problem}") from problem
            text, at = text[at:] + more, 0
            continue
        number += 1
        yield _checked(row, f"{name}: object {number}")


class _Twice(ValueError):
    """An object with two fields of one name."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"the field {twice!r} is there twice")
    return found


def _number(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits  # too large for a double: as text, digit by digit


_STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_float=_number)


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object", 'A row is an object: {"url": …}')
    return row
