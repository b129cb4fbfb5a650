"""Map a table's columns to a shard's: url and caption under these names, all others passed through."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from ...errors import InputError, did_you_mean
from ...read.sample import first_caption
from .. import rights
from ..config import DEFAULT_CAPTION_COLUMN

# Columns of a shard's parquet, in this order; passed-through columns follow.
FIXED = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_class", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
        ("duplicate_of", pa.string()),
        ("retry_of", pa.string()),
        ("sha256", pa.string()),
        ("content_type", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("orientation", pa.int8()),
        ("offset", pa.int64()),
    ]
)


def fixed_columns(with_rights: bool) -> pa.Schema:
    """The columns that fetch fills itself, in order."""
    return pa.schema([*FIXED, *rights.COLUMNS]) if with_rights else FIXED


# Additional columns in a list of failed rows: the key of the row, and its last failure. The colons avoid collisions
# with other columns.
RETRY_OF, RETRIED_CLASS = ":retry_of", ":retried_class"


# Additional columns of a folder's rows: why a row has no image to read.
REFUSED_CLASS, REFUSED_MESSAGE = ":refused_class", ":refused_message"


@dataclass(frozen=True, slots=True)
class Layout:
    """The source of each column. `table` has the table's own names and types.

    with_rights: whether a shard has the columns of `rights.COLUMNS`; outputs begun before there were any have none.
    """

    url: str
    caption: str | None
    table: pa.Schema
    with_rights: bool = False

    @property
    def fixed(self) -> pa.Schema:
        """The columns that fetch fills itself."""
        return fixed_columns(self.with_rights)

    @property
    def lists_captions(self) -> bool:
        """Whether the column of captions holds lists: the first is the caption, and the list is passed through."""
        return self.caption is not None and _is_list(self.table.field(self.caption).type)

    @property
    def passed(self) -> dict[str, str]:
        """Passed-through columns: name in the shard → name in the table."""
        used = (self.url,) if self.lists_captions else (self.url, self.caption)
        others = [name for name in self.table.names if name not in used]
        ours = self.fixed.names
        taken = set(ours) | set(others)
        renamed = {"": "unnamed"} | {name: f"source_{name}" for name in ours}
        return {_free_name(renamed[name], taken) if name in renamed else name: name for name in others}

    @property
    def schema(self) -> pa.Schema:
        """The columns of `rows`."""
        passed = [pa.field(ours, self.table.field(theirs).type) for ours, theirs in self.passed.items()]
        return pa.schema([("url", pa.string()), ("caption", pa.string()), *passed])

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch of the table to `schema`. Missing columns are null."""
        sources: list[str | None] = [self.url, self.caption, *self.passed.values()]
        arrays = [_column(batch, source, field.type) for source, field in zip(sources, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def for_retry(self) -> Layout:
        """The layout of a list of failed rows: this table's columns, and the failures."""
        return self._with(RETRY_OF, RETRIED_CLASS)

    def for_folder(self) -> Layout:
        """The layout of the rows of a folder."""
        return self._with(REFUSED_CLASS, REFUSED_MESSAGE)

    def _with(self, *extra: str) -> Layout:
        fields = [pa.field(name, pa.string()) for name in extra]
        return replace(self, table=pa.schema([*self.table, *fields]))

    def packed_table(self) -> str:
        """`table` as text for `unpacked_table`: type names alone do not determine every type."""
        return base64.b64encode(self.table.serialize()).decode()


def unpacked_table(text: str) -> pa.Schema:
    """The schema from the text of `Layout.packed_table`."""
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"source_{name}"
    return name


def _column(batch: pa.RecordBatch, source: str | None, kind: pa.DataType) -> pa.Array:
    position = batch.schema.get_field_index(source) if source is not None else -1
    if position < 0:
        return pa.nulls(batch.num_rows, kind)
    values = batch.column(position)
    if values.type == kind:
        return values
    if _is_list(values.type) and pa.types.is_string(kind):
        return pa.array([first_caption(captions) for captions in values.to_pylist()], kind)
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as problem:
        raise InputError(
            f"the column {source!r} does not fit {kind}, its type in the first files: {problem}"
        ) from problem


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def choose_columns(table: pa.Schema, url_col: str, caption_col: str | None, where: str, otherwise: str = "") -> Layout:
    """The layout for a table with these columns. Raises InputError with similar names if a requested column is missing.

    `caption_col` None uses the column `caption` if there is one.
    """
    _require(table.names, url_col, where, "url_col", otherwise)
    if caption_col is not None:
        _require(table.names, caption_col, where, "caption_col")
    elif DEFAULT_CAPTION_COLUMN in table.names and url_col != DEFAULT_CAPTION_COLUMN:
        caption_col = DEFAULT_CAPTION_COLUMN
    for name in filter(None, (url_col, caption_col)):
        kind = table.field(name).type
        if pa.types.is_nested(kind) and not (name == caption_col and _is_list(kind) and _is_text(kind.value_type)):
            raise InputError(f"{where}: the column {name} holds {table.field(name).type}, not text")
    return Layout(url_col, caption_col, table)


def _require(names: Sequence[str], name: str, where: str, field: str, otherwise: str = "") -> None:
    if name not in names:
        near = did_you_mean(name, names)
        raise InputError(
            f"{where}: no column {name!r}", f"{near}{'.' * (not near.endswith('?'))} Choose with `{field}`{otherwise}"
        )
