"""Tables of local paths: which column holds them, where they lead, and columns of paths that were taken for urls."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from urllib.parse import unquote_to_bytes, urlsplit

import pyarrow as pa

from ... import files
from ...errors import InputError, did_you_mean
from ..http.url import is_url
from ..outcome import Failure
from . import table
from .schema import Layout
from .table_file import TableFile

PATH_COLUMNS = ("file_name", "file", "path", "file_path", "filename", "image", "image_path")
_GLANCE = 200  # rows
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_FILE_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,4}$")


def path_column(names: Sequence[str], asked: str | None, otherwise: str, where: str) -> str:
    """The column with the paths: as asked, or by its name. Raises InputError if it is not there."""
    if asked is not None and asked not in names:
        raise InputError(f"{where}: no column {asked!r}", did_you_mean(asked, names))
    found = asked or next((name for name in (*PATH_COLUMNS, otherwise) if name in names), None)
    if found is None:
        raise InputError(
            f"{where}: none of its columns is called {', '.join(PATH_COLUMNS)}",
            f"Choose one with `file_col`: {', '.join(names)}",
        )
    return found


def located(text: str | None, home: str, root: str = "") -> str | Failure:
    """The path that a table in the folder `home` means by `text`; with a `root`, one that lies below it as written."""
    if text is None or not text.strip():
        return Failure("invalid_url", "no path")
    if text[:5].lower() == "file:":
        try:
            parts = urlsplit(text)
        except ValueError as problem:
            return Failure("invalid_url", f"{problem}: {text[:80]}")
        if parts.netloc not in ("", "localhost"):
            return Failure("invalid_url", f"a file of another machine: {parts.netloc[:80]}")
        text = os.fsdecode(unquote_to_bytes(parts.path))
    elif is_url(text):
        return Failure("invalid_url", "a url in a column of local paths")
    path = os.path.join(files.local_path(home).absolute(), text)  # noqa: PTH118  as text: a path may be of any bytes
    return path if not root else _below(root, path)


def _below(root: str, path: str) -> str | Failure:
    """`path` without `..`, which is taken as text: links in the root itself stay as they are."""
    lead = f"{root.rstrip('/')}/"
    if path.startswith(lead):
        rest = os.path.normpath(path[len(lead) :])
        inside = not rest.startswith("../") and rest not in ("..", ".") and not rest.startswith("/")
        path = lead + rest
    else:
        path = os.path.normpath(path)
        inside = path.startswith(f"{os.path.normpath(root).rstrip('/')}/")
    if "\0" in path or not inside:
        return Failure("outside_root", f"leads out of {root}")
    return path


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
