"""Read queries from files: lines of text, a column of a table, or embeddings."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .. import files
from ..errors import EmptyInput, InputError, did_you_mean
from ..parquet_tables import read_table
from ..read import delimited
from ..read.delimited import DialectOptions
from ..read.text_file import TextFile, compression_of

COLUMNS = ("query", "text", "caption")
EMBEDDING_COLUMNS = ("embedding", "image_embedding", "text_embedding")
_KNOWN = (".txt", ".csv", ".tsv", ".parquet", ".npy")


def read_queries(
    location: str, column: str | None = None, dialect: DialectOptions | None = None
) -> list[str] | np.ndarray:
    """Texts, or float32 [n, dim], from a .txt (by line, skipping empty ones), .csv, .tsv, .parquet or .npy file.

    Text files may be compressed. column: of a table; by default the first of COLUMNS or EMBEDDING_COLUMNS in it, or its
    only one. dialect: of a text file, where it is not to be detected. Raises InputError.
    """
    plain, compression = compression_of(location)
    suffix = f".{plain.rpartition('.')[2]}"
    file = TextFile(location, compression)
    given = dialect or DialectOptions()
    if suffix not in _KNOWN:
        raise InputError(f"{location}: queries come from {', '.join(_KNOWN)} files")
    if suffix == ".npy":
        found: list[str] | np.ndarray = read_embeddings(location)
    elif suffix == ".txt":
        with file.text(file.encoding(given.encoding)) as lines:
            found = [line.strip() for line in lines if line.strip()]
    elif suffix == ".parquet":
        found = _of_parquet(location, column)
    else:
        found = _of_table(file, column, given, "\t" if suffix == ".tsv" else ",")
    if not len(found):
        raise EmptyInput(f"{location}: no queries in it")
    return found


def read_embeddings(location: str) -> np.ndarray:
    """float32 [n, dim] from an .npy file of shape [n, dim] or [dim]. Raises InputError."""
    try:
        array = np.load(io.BytesIO(files.read_bytes(location)), allow_pickle=False)
    except (ValueError, EOFError) as problem:
        raise InputError(f"{location}: no .npy file: {problem}") from problem
    if not np.issubdtype(array.dtype, np.floating) or array.ndim not in (1, 2):
        raise InputError(
            f"{location}: {array.dtype} of shape {array.shape}; embeddings are floats of [n, dim] or [dim]"
        )
    rows: np.ndarray = np.atleast_2d(array).astype(np.float32)
    return rows


def _of_table(file: TextFile, column: str | None, given: DialectOptions, usual: str) -> list[str]:
    try:
        found = delimited.detect(file, usual, given)
    except EmptyInput:
        return []
    if not found.rows:
        return []
    name = _column(file.location, found.header, column)
    place = found.header.index(name)
    return _texts(file.location, [row[place] for row in delimited.rows(file, found.dialect)], name)


def _of_parquet(location: str, column: str | None) -> list[str] | np.ndarray:
    try:
        table = read_table(location)
    except pa.ArrowException as problem:
        raise InputError(f"{location}: cannot be read: {problem}") from problem
    name = _column(location, table.column_names, column)
    values = table.column(name)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _texts(location, values.to_pylist(), name)
    try:
        array = np.array(values.to_pylist(), np.float32)
    except (ValueError, TypeError) as problem:
        raise InputError(
            f"{location}: the column {name!r} holds neither texts nor embeddings of one width"
        ) from problem
    if array.ndim != 2:
        raise InputError(f"{location}: the column {name!r} is {values.type}, neither texts nor embeddings")
    return array


def _texts(location: str, values: Sequence[str | None], name: str) -> list[str]:
    empty = [number for number, value in enumerate(values) if value is None or not value.strip()]
    if empty:
        raise InputError(f"{location}: row {empty[0]} has no {name!r}", "Results go by the row: give each a text")
    return [str(value) for value in values]


def _column(location: str, names: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked not in names:
            raise InputError(f"{location}: no column {asked!r}", did_you_mean(asked, names))
        return asked
    known = [name for name in (*COLUMNS, *EMBEDDING_COLUMNS) if name in names]
    if not known and len(names) == 1:
        known = list(names)
    if not known:
        raise InputError(
            f"{location}: none of its columns is called {', '.join(COLUMNS)} or {', '.join(EMBEDDING_COLUMNS)}",
            f"Choose one with `column`: {', '.join(names)}",
        )
    return known[0]
