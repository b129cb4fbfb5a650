"""Tables of local paths: which column holds them, and where they lead."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from .. import files
from ..errors import InputError, did_you_mean

PATH_COLUMNS = ("file_name", "file", "path", "file_path", "filename", "image", "image_path")
_URL = re.compile(r"\s*https?:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NoPath:
    """Why a value leads to no file. leads_out: out of the root, rather than nowhere."""

    why: str
    leads_out: bool = False


def path_column(names: Sequence[str], asked: str | None, otherwise: str, where: str, field: str = "file_col") -> str:
    """The column with the paths: as asked, or by its name. Raises InputError if it is not there."""
    if asked is not None and asked not in names:
        raise InputError(f"{where}: no column {asked!r}", did_you_mean(asked, names))
    found = asked or next((name for name in (*PATH_COLUMNS, otherwise) if name in names), None)
    if found is None:
        raise InputError(
            f"{where}: none of its columns is called {', '.join(PATH_COLUMNS)}",
            f"Choose one with `{field}`: {', '.join(names)}",
        )
    return found


def located(text: str | None, home: str, root: str = "") -> str | NoPath:
    """The path that a table in the folder `home` means by `text`; with a `root`, one that lies below it as written."""
    if text is None or not text.strip():
        return NoPath("no path")
    if text[:5].lower() == "file:":
        try:
            parts = urlsplit(text)
        except ValueError as problem:
            return NoPath(f"{problem}: {text[:80]}")
        if parts.netloc not in ("", "localhost"):
            return NoPath(f"a file of another machine: {parts.netloc[:80]}")
        text = os.fsdecode(unquote_to_bytes(parts.path))
    elif _URL.match(text):
        return NoPath("a url in a column of local paths")
    folder = str(files.local_path(home).absolute())
    path = os.path.join(folder, _as_it_lies(folder, text))  # noqa: PTH118  as text: a path may be of any bytes
    return path if not root else _below(root, path)


def _as_it_lies(folder: str, text: str) -> str:
    """`text`, or how the file is called that it means: without blanks around it, spelled as a Mac or not, or with `/`.

    Only where no file is called as it is written. A text that could mean no other is not looked for.
    """
    bare = text.strip()
    others = [bare, unicodedata.normalize("NFC", bare), unicodedata.normalize("NFD", bare)]
    others += [bare.replace("\\", "/")]
    if all(other == text for other in others) or "\0" in text or os.path.lexists(os.path.join(folder, text)):  # noqa: PTH118
        return text
    return next((it for it in others if os.path.lexists(os.path.join(folder, it))), text)  # noqa: PTH118


def _below(root: str, path: str) -> str | NoPath:
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
        return NoPath(f"leads out of {root} (relative paths begin at the folder of their table)", leads_out=True)
    return path


def nameable(text: str) -> str:
    """`text` as a path, whatever surrogates JSON has in it: those that stand for no byte of a name are spelled out."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
