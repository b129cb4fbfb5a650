"""Columns beside those that a layout has a name for."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa


def renamed(metadata: pa.Table, taken: Collection[str]) -> pa.Table:
    """`metadata` with an underscore behind each name that is `taken`: no column is lost to a layout's own."""
    names: list[str] = []
    there = {*taken, *metadata.column_names}
    for name in metadata.column_names:
        free = name
        if name in taken:
            while free in there:
                free += "_"
            there.add(free)
        names.append(free)
    return metadata.rename_columns(names)
