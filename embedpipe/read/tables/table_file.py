"""One file of a url table, and what a look at all of it finds."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa

from ..delimited import Dialect, DialectOptions
from ..text_file import TextFile

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a url table. `name` is its path relative to the input folder, so it does not change if that moves.

    compression: a key of `COMPRESSIONS`, or empty. dialect: of a text file, as surveyed; None before that, for parquet,
    and in plans of versions that knew none.
    """

    location: str
    name: str
    ending: str
    compression: str = ""
    dialect: Dialect | None = None

    @property
    def contents(self) -> TextFile:
        """The file itself."""
        return TextFile(self.location, self.compression)

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return posixpath.dirname(self.location) or "."

    @property
    def partition(self) -> dict[str, str | None]:
        """The values that its folders carry (`date=2024-01-01/part-0.parquet`), by column."""
        pairs = (folder.partition("=") for folder in self.name.split("/")[:-1])
        values = {unquote(name): unquote(value) for name, equals, value in pairs if name and equals}
        return {name: None if value == _HIVE_NULL else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How to read tables. infer_types: whether columns of a csv or tsv become numbers where all their values are."""

    dialect: DialectOptions = field(default_factory=DialectOptions)
    infer_types: bool = False


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What one file holds. dialect: of a text file. blank_lines: passed over."""

    rows: int
    schema: pa.Schema
    dialect: Dialect | None = None
    blank_lines: int = 0
