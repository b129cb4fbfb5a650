"""Infer the Arrow type of a column, for untyped files (csv, json) and across several files.

A type is chosen only when every value of the whole file fits it without loss: a column of zip codes stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# In order of preference: a text column gets the first type whose pattern matches all its non-empty values.
_PATTERNS = {
    pa.int64(): r"^-?(0|[1-9]\d{0,17})$",
    pa.float64(): r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d{1,3})?$|^(nan|NaN|-?inf)$",
    pa.bool_(): r"^(true|false|True|False)$",
}


class TextColumn:
    """Incremental type inference for one text column."""

    def __init__(self) -> None:
        self.possible = list(_PATTERNS)
        self.any_value = False

    def see(self, values: pa.Array) -> None:
        """Add more values."""
        filled = values.filter(pc.not_equal(values, ""))
        self.any_value = self.any_value or len(filled) > 0
        self.possible = [
            kind
            for kind in self.possible
            if pc.all(pc.match_substring_regex(filled, _PATTERNS[kind]), min_count=0).as_py()
        ]

    @property
    def type(self) -> pa.DataType:
        """The type that fits all values so far."""
        return self.possible[0] if self.possible and self.any_value else pa.string()


def text_to(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert a text column to `kind`; empty text is null for all types but strings. Raises pa.ArrowInvalid."""
    if pa.types.is_string(kind):
        return values
    return pc.cast(pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values), kind)


def type_of(values: Sequence[Any]) -> pa.DataType:
    """The type of some JSON values; string if they are mixed."""
    try:
        return pa.infer_type(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.string()


def join_types(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """The narrowest type that fits the values of both, or None if there is none."""
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (left, right)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None
