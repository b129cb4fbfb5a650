"""Columns that conditions can use: metadata, derived columns and the output of a score head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...columns import schema
from ...load import EmbeddingDataset
from ...load.row_blocks import row_blocks, unit_rows
from .score_head import Head

SCORE = "score"


def _words(table: pa.Table) -> Any:
    return pc.cast(
        pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(table["caption"]))), pa.int64()
    )


# name → (type, source columns, function)
DERIVED: dict[str, tuple[pa.DataType, tuple[str, ...], Callable[[pa.Table], Any]]] = {
    "caption_length": (pa.int64(), ("caption",), lambda table: pc.cast(pc.utf8_length(table["caption"]), pa.int64())),
    "caption_words": (pa.int64(), ("caption",), _words),
    "aspect_ratio": (
        pa.float64(),
        ("width", "height"),
        lambda table: pc.divide(pc.cast(table["width"], pa.float64()), pc.cast(table["height"], pa.float64())),
    ),
}


def column_types(dataset: EmbeddingDataset, with_score: bool) -> dict[str, pa.DataType]:
    """The types of all columns by name; a column of the data set takes precedence over a derived one."""
    stored = {field.name: field.type for field in schema(dataset.run.columns)}
    derived = {name: kind for name, (kind, _, _) in DERIVED.items()}
    return {**derived, **({SCORE: pa.float32()} if with_score else {}), **stored}


def values(
    dataset: EmbeddingDataset, shard: int, names: Iterable[str], head: Head | None, modality: str
) -> dict[str, pa.Array]:
    """The columns `names` (of `column_types`) of the shard at that index in `dataset.shards`."""
    names = set(names)
    derived = {name for name in names - set(dataset.column_names()) if name in DERIVED}
    scored = SCORE in names and SCORE not in dataset.column_names()
    stored = names - derived - ({SCORE} if scored else set())
    needed = stored.union(*(DERIVED[name][1] for name in derived))
    table = dataset.metadata(shard, tuple(sorted(needed))) if needed else None
    found = {name: table[name].combine_chunks() for name in stored} if table is not None else {}
    for name in derived:
        found[name] = DERIVED[name][2](table).combine_chunks()
    if scored and head is not None:
        parts = [head.score(unit_rows(rows)) for _, rows in row_blocks(dataset, shard, modality)]
        found[SCORE] = pa.array(np.concatenate(parts), pa.float32())
    return found
