"""Metadata columns: each has one type, fixed when an output is created, so all shards share a schema.

Types are inferred from the first samples and recorded in the run card. A value that does not fit its column, or has no
column, is stored as JSON in the column `extra`: nothing is lost and every shard has the same schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

# Columns of every embedding shard, in this order; columns passed through by readers follow.
FIXED = {
    "key": "string",
    "image_path": "string",  # = key; clip-retrieval's name
    "caption": "string",
    "url": "string",
    "width": "int64",
    "height": "int64",
    "sha256": "string",
    "similarity": "float",
    "src_shard": "string",
    "src_index": "int64",
}
EXTRA = "extra"

# What the encoder measures per row besides the embeddings. These follow `similarity`, and are listed in the run card
# among the passed-through columns, because version 0.1's run card has none of them.
IMAGE_NORM, TEXT_NORM, TEXT_TOKENS_CUT = "image_norm", "text_norm", "text_tokens_cut"
MEASURED = {IMAGE_NORM: "float", TEXT_NORM: "float", TEXT_TOKENS_CUT: "int32"}
NORMS = {"image": IMAGE_NORM, "text": TEXT_NORM}
_NORM_TOLERANCE = 0.01  # float16 rounds norms by far less; raw rows are off by far more
_BEHIND = "similarity"

_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bool": pa.bool_(),
}
_INT64 = range(-(2**63), 2**63)
_INTEGERS = {"int32": range(-(2**31), 2**31), "int64": _INT64}


def of_norm_1(least: float, most: float) -> bool:
    """Whether rows with norms in this range count as normalised."""
    return max(1 - least, most - 1) <= _NORM_TOLERANCE


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type for the run card's name `kind`."""
    return _TYPES[kind]


def schema(columns: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema of a metadata file whose passed-through columns are `columns`."""
    kinds = {**columns, **FIXED, EXTRA: "string"}
    return pa.schema([(name, _TYPES[kinds[name]]) for name in column_names(columns)])


def column_names(columns: Mapping[str, str]) -> tuple[str, ...]:
    """All metadata columns of a data set with passed-through columns `columns`, in order."""
    fixed = list(FIXED)
    behind = fixed.index(_BEHIND) + 1
    return tuple(dict.fromkeys((*fixed[:behind], *measured(columns), *fixed[behind:], *columns, EXTRA)))


def measured(columns: Mapping[str, str]) -> tuple[str, ...]:
    """The MEASURED columns among `columns`; one with another type belongs to the input."""
    return tuple(name for name, kind in MEASURED.items() if columns.get(name) == kind)


def passed_through(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns in `columns` that come from the input."""
    return {name: kind for name, kind in columns.items() if name not in measured(columns)}


def guess(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Infer the types of the passed-through columns, in order of first appearance.

    Integers and floats mix to double; any other mixed or nested values become strings (JSON).
    """
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in FIXED and name not in MEASURED and name != EXTRA and _storable(name):
                kinds.setdefault(name, set()).update(_kind(value))
    return {name: join_kinds(found) for name, found in kinds.items()}


def _kind(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, bool):
        return {"bool"}
    if isinstance(value, int):
        return {"int64"} if value in _INT64 else {"string"}
    if isinstance(value, float):
        return {"double"}
    return {"string"}


def join_kinds(kinds: set[str]) -> str:
    """The type of a column with values of all these types: integers and floats mix to double, others to string."""
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds == {"int32", "int64"}:
        return "int64"
    return "double" if kinds and kinds <= {"int32", "int64", "float", "double"} else "string"


def split_row(metadata: Mapping[str, Any], columns: Mapping[str, str], stored: Mapping[str, Any]) -> dict[str, Any]:
    """One sample's metadata as values for `columns`, plus `extra` (JSON of the remaining fields, or None).

    `columns` are the input's columns. `stored` are the row's values in all others: an input field of the same name but
    a different value goes to `extra`, such as a table's own `similarity`.
    """
    row: dict[str, Any] = dict.fromkeys(columns)
    homeless: dict[str, Any] = {}
    for name, value in metadata.items():
        if name in columns:
            row[name] = housed = _fit(value, columns[name])
        else:
            housed = value if _same(stored.get(name), value) else None
        if housed is None and value is not None:
            homeless[name] = value
    row[EXTRA] = _json(homeless) if homeless else None
    return row


def _same(stored: Any, value: Any) -> bool:
    return type(stored) is type(value) and bool(stored == value)


def _fit(value: Any, kind: str) -> Any:
    """`value` converted to that type, or None if the conversion would lose information."""
    if value is None:
        return None
    if kind == "string":
        text = value if isinstance(value, str) else _json(value)
        return text if _storable(text) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "double":
        return _exact_double(value)
    if kind == "float":
        exact = _exact_double(value)
        with np.errstate(over="ignore"):
            return exact if exact is not None and float(np.float32(exact)) == exact else None
    return value if isinstance(value, int) and value in _INTEGERS[kind] else None


def _exact_double(value: float) -> float | None:
    try:
        as_double = float(value)
    except OverflowError:
        return None
    return as_double if isinstance(value, float) or as_double == value else None


def optional_string(value: Any) -> str | None:
    """`value` if it is a storable string, else None."""
    return value if isinstance(value, str) and _storable(value) else None


def storable(text: str) -> str:
    """`text` without lone surrogates (JSON may carry them; UTF-8 cannot)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _storable(text: str) -> bool:
    return storable(text) == text


def _json(value: Any) -> str:
    return json.dumps(_finite(value), sort_keys=True)


def _finite(value: Any) -> Any:
    # Standard JSON has no NaN; parsers in other languages would reject it.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
