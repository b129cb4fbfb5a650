"""Columns of local paths that were taken for urls."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from itertools import islice

import pyarrow as pa

from ... import files
from ...errors import InputError
from ...read.local_paths import PATH_COLUMNS
from ...read.tables import table
from ...read.tables.table_file import TableFile
from .schema import Layout

_GLANCE = 200  # rows
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_FILE_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,4}$")


def refuse_local_paths(file: TableFile, column: str) -> None:
    """Raise InputError if most of the first values of the column of urls are local paths."""
    batches = table.batches(file, pa.schema([(column, pa.string())]))
    urls = Layout(column, None, pa.schema([(column, pa.string())]))
    values = (value for batch in batches for value in urls.rows(batch).column("url").to_pylist())
    filled = [value for value in islice(values, _GLANCE) if value and value.strip()]
    paths = [value for value in filled if _looks_local(value.strip(), posixpath.dirname(file.location))]
    if 2 * len(paths) > len(filled):
        raise InputError(
            f"{file.location}: the column {column!r} holds local paths, not urls ({paths[0][:80]!r})",
            "Give `local_root='DIR'` to read images below DIR; urls begin with http:// or https://",
        )


def _looks_local(text: str, home: str) -> bool:
    if text.lower().startswith("file:") or text.startswith(("/", "./", "../", "~")):
        return not text.startswith("//")
    if _SCHEME.match(text):
        return re.match(r"[A-Za-z]:[\\/]", text) is not None
    if _FILE_ENDING.search(text):
        return True
    return bool(text) and files.is_local(home) and os.path.exists(files.local_path(home) / text.replace("\0", ""))  # noqa: PTH110


def hint(names: Iterable[str]) -> str:
    """What to add to the error of a missing column of urls: perhaps another one holds local paths."""
    there = next((name for name in PATH_COLUMNS if name in set(names)), None)
    return "" if there is None else f". If {there!r} holds local paths, give `local_root='DIR'`"
