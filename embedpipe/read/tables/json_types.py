"""Infer a column's Arrow type from its JSON values, without loss: what has no such type is stored as JSON text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa

_EXACT = 2**53  # integers beyond it may lose digits as doubles
_DEEPEST = 32  # a list takes two levels of a parquet schema, and nothing opens a file whose schema has more than 100


@dataclass(frozen=True, slots=True)
class JsonType:
    """The values of a column so far.

    kind: null, bool, int, float, text, list, struct, or mixed, which no Arrow type but text fits. least, most: of the
    integers among the numbers. item: of a list. fields: of a struct.
    """

    kind: str
    least: int = 0
    most: int = 0
    item: JsonType | None = None
    fields: Mapping[str, JsonType] = field(default_factory=dict)

    def arrow(self) -> pa.DataType:
        """The Arrow type. Text for nothing but nulls."""
        if self.kind == "list" and self.item is not None:
            return pa.list_(self.item.arrow())
        if self.kind == "struct":
            return pa.struct([(name, inner.arrow()) for name, inner in self.fields.items()])
        if self.kind == "int":
            return pa.int64() if self.most < 2**63 else pa.uint64()
        return {"bool": pa.bool_(), "float": pa.float64()}.get(self.kind, pa.string())


NULL, BOOL, FLOAT, TEXT, MIXED = (JsonType(kind) for kind in ("null", "bool", "float", "text", "mixed"))


def type_of_all(values: Sequence[Any]) -> JsonType:
    """The type of some values of one column."""
    if set(map(type, values)) <= {str, type(None)}:
        return TEXT if any(value is not None for value in values) else NULL
    return _joined(map(_type_of, values))


def _joined(kinds: Iterable[JsonType]) -> JsonType:
    return reduce(wider, kinds, NULL)


def _type_of(value: Any, depth: int = 0) -> JsonType:
    if value is None:
        return NULL
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return _integers(value, value)
    if isinstance(value, float):
        return FLOAT
    if isinstance(value, str):
        return TEXT
    if depth == _DEEPEST:
        return MIXED
    if isinstance(value, list):
        item = _joined(_type_of(inner, depth + 1) for inner in value)
        return MIXED if item == MIXED else JsonType("list", item=item)
    return _struct({name: _type_of(inner, depth + 1) for name, inner in value.items()})


def _integers(least: int, most: int) -> JsonType:
    fits = least >= -(2**63) and most < (2**64 if least >= 0 else 2**63)
    return JsonType("int", least, most) if fits else MIXED


def _struct(fields: dict[str, JsonType]) -> JsonType:
    if not fields or MIXED in fields.values():  # parquet has no structs without fields
        return MIXED
    return JsonType("struct", fields=fields)


def wider(left: JsonType, right: JsonType) -> JsonType:
    """The type that fits the values of both without a change."""
    if NULL in (left, right):
        return left if right == NULL else right
    if {left.kind, right.kind} <= {"int", "float"}:
        least, most = min(left.least, right.least), max(left.most, right.most)
        if left.kind == right.kind == "int":
            return _integers(least, most)
        return JsonType("float", least, most) if least >= -_EXACT and most <= _EXACT else MIXED
    if left.kind != right.kind:
        return MIXED
    if left.kind == "list" and left.item is not None and right.item is not None:
        item = wider(left.item, right.item)
        return MIXED if item == MIXED else JsonType("list", item=item)
    if left.kind == "struct":
        if left.fields.keys() != right.fields.keys():  # as one type, absent fields would become nulls
            return MIXED
        return _struct({name: wider(left.fields[name], right.fields[name]) for name in left.fields})
    return left
