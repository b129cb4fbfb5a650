"""Hugging Face's image folders: images described by tables called `metadata`, in the folder or below it.

A row names its image in `file_name` (or `image`), relative to the table's folder.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence

from .. import files
from ..accounts import Accounts, Ledger
from .names import IMAGE, Naming, printable

METADATA_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PATH_COLUMNS = ("file_name", "image")
CAPTION_COLUMNS = ("caption", "text")


def metadata_tables(folder: str) -> list[str]:
    """The paths of the tables below a folder, sorted; none if there is no image beside or below any of them."""
    paths = [path for path in files.walk(folder) if not _hidden(path)]
    tables = [path for path in paths if posixpath.basename(path) in METADATA_TABLES]
    naming = Naming(first_dot=False)
    homes = [posixpath.dirname(table) for table in tables]
    described = any(
        naming(path).kind == IMAGE and any(path.startswith(f"{home}/" if home else "") for home in homes)
        for path in paths
    )
    return tables if described else []


def first_of(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """The first candidate among `names`."""
    return next((name for name in candidates if name in names), None)


def path_below(table: str, file_name: str) -> str:
    """The path below the folder of what a row of `table` names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(table), file_name))


def accounts_of_files(folder: str, named: Collection[str]) -> Accounts:
    """What became of the files of a folder. named: the paths that rows of its tables name."""
    ledger = Ledger("file")
    naming = Naming(first_dot=False)
    paths = files.walk(folder)
    ours = tuple(path.removesuffix("embedpipe.json") for path in paths if path.endswith("/embedpipe.json"))
    for path in paths:
        ledger.see()
        shown = printable(path)
        name = naming(path)
        if ours and path.startswith(ours):
            ledger.pass_over(shown, "own_output")
        elif path in named:
            ledger.use(shown)
        elif _hidden(path):
            ledger.pass_over(shown, "hidden")
        elif posixpath.basename(path) in METADATA_TABLES:
            ledger.use(shown)
        else:
            ledger.pass_over(shown, name.passed or ("no_row" if name.kind == IMAGE else name.unknown()))
    return ledger.closed()


def _hidden(path: str) -> bool:
    return any(piece.startswith(".") for piece in path.split("/"))
