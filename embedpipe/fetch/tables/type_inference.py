"""Infer the Arrow type of a column, for untyped files (csv, json) and across several files.

A type is chosen only when every value of the whole file fits it without loss: a column of zip codes stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# In order of preference: a column of text has the first type whose pattern all its non-empty values match.
_PATTERNS = {
    pa.int64(): r"^-?(0|[1-9]\d{0,17})$",
    pa.float64(): r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d{1,3})?$|^(nan|NaN|-?inf)$",
    pa.bool_(): r"^(true|false|True|False)$",
}


class TextColumn:
    """What is known of one column of text after some of its values."""

    def __init__(self) -> None:
        self.possible = list(_PATTERNS)
        self.any_value = False

    def see(self, values: pa.Array) -> None:
        """Take in some more values."""
        filled = values.filter(pc.not_equal(values, ""))
        self.any_value = self.any_value or len(filled) > 0
        self.possible = [
            kind
            for kind in self.possible
            if pc.all(pc.match_substring_regex(filled, _PATTERNS[kind]), min_count=0).as_py()
        ]

    @property
    def type(self) -> pa.DataType:
        """The type that all values seen so far fit."""
        return self.possible[0] if self.possible and self.any_value else pa.string()


def text_to(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column of text as `kind`; empty text is null for anything but strings. Raises pa.ArrowInvalid."""
    if pa.types.is_string(kind):
        return values
    return pc.cast(pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values), kind)


def type_of(values: Sequence[Any]) -> pa.DataType:
    """The type of some JSON values; string where they are of several kinds."""
    try:
        return pa.infer_type(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.string()


def join_types(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds the values of both, or None when there is none."""
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (left, right)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None
