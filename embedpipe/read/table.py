"""Samples from parquet tables of image bytes and captions: one, a folder or a glob, on any fsspec path."""

from __future__ import annotations

import base64
import contextlib
import datetime
import decimal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types as kinds

from .. import files
from ..accounts import Ledger
from ..errors import InputError
from ..scarcity import telling
from ..types import Reject, Sample, SourceShard
from . import locations
from .base import Digest, Survey
from .local_paths import PATH_COLUMNS
from .names import printable
from .sample import (
    LFS_REMEDY,
    MAX_CAPTION_BYTES,
    Rejected,
    SampleRules,
    decoded_caption,
    first_caption,
    is_lfs_pointer,
)

TABLE_SUFFIXES = (".parquet",)
_IMAGE_COLUMN = "image"
_KEY_COLUMN = "key"
_KEY_DIGITS = 9
_ROWS_AT_ONCE = 32
_BYTES_AT_ONCE = 1 << 27
_HASH_CHUNK = 1 << 22
_POINTER_BYTES = 64


@dataclass(frozen=True, slots=True)
class TableReader:
    """Reads `data`, a location or pattern of parquet files, each of them a shard.

    An image column has bytes, or structs with a field `bytes` (as in Hugging Face datasets). Columns other than image,
    caption and key become metadata, except for binary ones.
    """

    unit = "row"

    data: str
    rules: SampleRules

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The tables of `data`, sorted by name."""
        return self.survey(known).shards

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """See `Reader`."""
        found = locations.locate(self.data, TABLE_SUFFIXES)
        return Survey(locations.as_shards(self.data, found.locations, ".parquet"), found.accounts)

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """The rows of one table in small batches: memory use is a row group, never the table.

        Raises InputError if the table is damaged or lacks a required column.
        """
        location = locations.location_of(self.data, shard.name)
        ledger = ledger or Ledger(self.unit)
        with files.reading(location) as stream:
            if is_lfs_pointer(stream.read(_POINTER_BYTES)):
                raise InputError(f"{location}: a pointer of Git LFS, not the file", LFS_REMEDY)
            with _damage_told(location):
                # Pre-buffering would keep all requested row groups in memory.
                table = pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)
            columns = _choose(location, table.schema_arrow, self.rules)
            seen: set[str] = set()
            first = 0
            for batch in _batches(location, table, columns):
                for row in _rows(batch, columns, first, self.rules.max_sample_bytes):
                    ledger.see()
                    ledger.use(row.key)
                    yield _finish(row, self.rules, seen)
                first += batch.num_rows
            # Parquet is read out of order, its footer first; the bytes are hashed in order, afterwards.
            stream.seek(0)
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """See `Counting`."""
        location = locations.location_of(self.data, shard.name)
        with files.reading(location) as stream, _damage_told(location):
            rows = pq.ParquetFile(stream).metadata.num_rows
        for row in range(rows):
            ledger.see()
            ledger.use(str(row))


@contextlib.contextmanager
def _damage_told(location: str) -> Iterator[None]:
    try:
        with telling():
            yield
    except (pa.ArrowException, OSError) as problem:
        raise InputError(
            f"{location}: cannot be read as parquet: {str(problem).rstrip('.')}", "Repair the file or take it away"
        ) from problem


@dataclass(frozen=True, slots=True)
class _Columns:
    """The role of each column; None if missing or not requested. `passed` become metadata."""

    image: str | None
    caption: str | None
    key: str | None
    passed: tuple[str, ...]

    def wanted(self) -> list[str]:
        """All columns to read."""
        return [name for name in (self.image, self.caption, self.key, *self.passed) if name is not None]


def _choose(location: str, schema: pa.Schema, rules: SampleRules) -> _Columns:
    """Choose the columns of a sample. Raises InputError for a missing one or an unsuitable type."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"{location}: more than one column {twice[0]!r}", "Columns need names of their own")
    image = rules.image_column or _IMAGE_COLUMN
    key = rules.key_column or (_KEY_COLUMN if _KEY_COLUMN in schema.names else None)
    if rules.need_image:
        otherwise = "`images=False` encodes captions only"
        if paths := [name for name in PATH_COLUMNS if name in schema.names and _holds_text(schema.field(name).type)]:
            otherwise += f"; if {paths[0]!r} holds local paths, give `local_root='DIR'`"
        _require(location, schema, image, "image bytes", _holds_bytes, "image_column", otherwise)
    if rules.need_caption:
        _require(
            location,
            schema,
            rules.caption_field,
            "text",
            _holds_captions,
            "caption_key",
            "`texts=False` encodes images only",
        )
    if key is not None:
        _require(location, schema, key, "text or whole numbers", _holds_keys, "key_column", "")
    caption = rules.caption_field if rules.need_caption else None
    taken = {image, caption, key}
    passed = (field.name for field in schema if field.name not in taken and not _holds_bytes(field.type))
    return _Columns(image if rules.need_image else None, caption, key, tuple(passed))


def _require(
    location: str,
    schema: pa.Schema,
    name: str,
    what: str,
    fits: Callable[[pa.DataType], bool],
    field: str,
    otherwise: str,
) -> None:
    remedy = f"Name it with `{field}`" + (f"; {otherwise}" if otherwise else "")
    if name not in schema.names:
        there = ", ".join(schema.names[:12]) + (" …" if len(schema.names) > 12 else "")
        raise InputError(f"{location}: no column {name!r} with {what}; it has {there}", remedy)
    if not fits(schema.field(name).type):
        raise InputError(f"{location}: column {name!r} holds {schema.field(name).type}, not {what}", remedy)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        kinds.is_binary(kind)
        or kinds.is_large_binary(kind)
        or kinds.is_fixed_size_binary(kind)
        or kinds.is_binary_view(kind)
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if kinds.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _holds_text(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(
        kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind) or kinds.is_null(kind)
    )


def _holds_captions(kind: pa.DataType) -> bool:
    return _holds_text(kind) or (_is_list(kind) and _holds_text(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind) or kinds.is_list_view(kind)
    )


def _holds_keys(kind: pa.DataType) -> bool:
    return _holds_text(kind) or bool(kinds.is_integer(kind))


def _batches(location: str, table: pq.ParquetFile, columns: _Columns) -> Iterator[pa.RecordBatch]:
    with _damage_told(location):
        batches = table.iter_batches(_rows_at_once(table), columns=columns.wanted(), use_threads=False)
    while True:
        with _damage_told(location):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _rows_at_once(table: pq.ParquetFile) -> int:
    """Few if the rows are large."""
    groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, largest)))


@dataclass(frozen=True, slots=True)
class _Row:
    """One row as read."""

    index: int
    key: str
    image: bytes | _TooLarge | None
    caption: bytes | None
    metadata: dict[str, Any]


def _rows(batch: pa.RecordBatch, columns: _Columns, first: int, most_bytes: int) -> Iterator[_Row]:
    n = batch.num_rows
    images = _images(batch.column(columns.image), most_bytes) if columns.image else [None] * n
    captions = _captions(batch.column(columns.caption)) if columns.caption else [None] * n
    keys = _keys(batch.column(columns.key)) if columns.key else [None] * n
    passed = {name: plain_values(batch.column(name)) for name in columns.passed}
    if columns.caption and _is_list(batch.column(columns.caption).type):  # the other captions are kept
        passed[columns.caption] = plain_values(batch.column(columns.caption))
    for i, key in enumerate(keys):
        metadata = {name: values[i] for name, values in passed.items()}
        number = f"{first + i:0{_KEY_DIGITS}d}"
        yield _Row(first + i, number if key is None else key, images[i], captions[i], metadata)


class _TooLarge(Enum):
    """Stands for an image that is too large to be taken from its table."""

    TOO_LARGE = ""


def _images(column: pa.Array, most_bytes: int) -> list[bytes | _TooLarge | None]:
    if kinds.is_struct(column.type):
        column = column.flatten()[
            column.type.get_field_index("bytes")
        ]  # nulls of the struct become nulls of its fields
    return [
        _TooLarge.TOO_LARGE if value.is_valid and value.as_buffer().size > most_bytes else value.as_py()
        for value in column
    ]


def _captions(column: pa.Array) -> list[bytes | None]:
    if not _is_list(column.type):
        return _text_bytes(column)
    return [None if text is None else text.encode() for text in map(first_caption, column.to_pylist())]


def _text_bytes(column: pa.Array) -> list[bytes | None]:
    # Not as str: a text column may contain invalid UTF-8, which affects one sample, not the table.
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    found: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found


def _keys(column: pa.Array) -> list[str | None]:
    if kinds.is_integer(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    return [None if raw is None else _text(raw) for raw in _text_bytes(column)]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return printable(raw.decode("utf-8", "surrogateescape"))


def plain_values(column: pa.Array) -> list[Any]:
    """Values that JSON can represent, for metadata."""
    if _holds_text(column.type):
        return [None if raw is None else _text(raw) for raw in _text_bytes(column)]
    if kinds.is_timestamp(column.type) or kinds.is_duration(column.type):
        # Python's datetimes are limited to microseconds, and local times are ambiguous at clock changes.
        utc = pa.timestamp(column.type.unit, "UTC") if getattr(column.type, "tz", None) else column.type
        return list(column.cast(utc).cast(pa.string()).to_pylist())
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return f"{value:f}" if isinstance(value, decimal.Decimal) and value.is_finite() else str(value)


def _finish(row: _Row, rules: SampleRules, seen: set[str]) -> Sample | Reject:
    def reject(error_class: str, message: str) -> Reject:
        return Reject(row.key, row.index, "read", error_class, message)

    if row.key in seen:
        return reject("duplicate_key", "a sample with this key came earlier")
    seen.add(row.key)
    caption: str | None = None
    if rules.need_caption:
        if row.caption is None:
            return reject("caption_missing", "no caption")
        if len(row.caption) > MAX_CAPTION_BYTES:
            return reject("caption_too_large", f"the caption is larger than {MAX_CAPTION_BYTES} bytes")
        try:
            caption = decoded_caption(row.caption)
        except Rejected as reason:
            return reject(reason.error_class, reason.message)
        if not caption.strip():
            return reject("caption_missing", "the caption is empty")
    if rules.need_image and row.image is None:
        return reject("image_missing", "the row holds no image bytes")
    if isinstance(row.image, _TooLarge):
        return reject("too_many_bytes", f"the image has more than {rules.max_sample_bytes} bytes")
    if row.image is not None and is_lfs_pointer(row.image):
        return reject("git_lfs_pointer", f"a pointer of Git LFS, not the image. {LFS_REMEDY}")
    if rules.need_image and not row.image:
        return reject("image_empty", "the row's image holds zero bytes")
    return Sample(row.key, row.index, row.image, caption, row.metadata)
