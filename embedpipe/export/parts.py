"""The parts of an export: their numbers, shards and rows, with the rows checked before they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..errors import DatasetError, EmptyInput
from ..load import EmbeddingDataset
from ..ragged import RaggedRows
from ..types import SourceShard
from .base import ExportPart, PlannedPart

_ROWS_AT_ONCE = 16_384


def plan_parts(dataset: EmbeddingDataset, rows: np.ndarray | None) -> tuple[PlannedPart, ...]:
    """One part per shard with rows to export; `rows` int64, ascending, or None for all.

    Raises EmptyInput if there are none.
    """
    parts = tuple(_parts(dataset, rows))
    if not parts:
        raise EmptyInput(f"{dataset.path}: no rows to export", "Look at the rejects of the data set, and at `keys`")
    return parts


def _parts(dataset: EmbeddingDataset, rows: np.ndarray | None) -> Iterator[PlannedPart]:
    number = 0
    for shard, there in enumerate(dataset.shards):
        places = None
        if rows is not None:
            first, last = np.searchsorted(rows, (there.start, there.stop))
            places = rows[first:last] - there.start
            if not len(places):
                continue
        digest = hashlib.sha256("".join(record.sha256 for record in there.manifest.files).encode())
        if places is not None:
            digest.update(places.astype("<i8").tobytes())
        source = SourceShard(there.manifest.source.name, there.manifest.bytes(), digest.hexdigest())
        count = len(places) if places is not None else there.stop - there.start
        yield PlannedPart(number, shard, places, count, source)
        number += 1


def read_export_part(dataset: EmbeddingDataset, planned: PlannedPart, dtype: str, text_tokens: bool) -> ExportPart:
    """The rows of a part, embeddings in `dtype`.

    Raises DatasetError if a file is truncated or missing, or a number is not finite (in `dtype`).
    """
    tokens = None
    if text_tokens:
        dataset.require_text_tokens()
        tokens = _token_states(dataset.token_states(planned.shard), planned.places, dtype)
    metadata = dataset.metadata(planned.shard)
    part = ExportPart(
        planned,
        _embeddings(dataset, planned, "image", dtype) if dataset.image is not None else None,
        _embeddings(dataset, planned, "text", dtype) if dataset.text is not None else None,
        tokens,
        metadata if planned.places is None else metadata.take(pa.array(planned.places)),
    )
    if tokens is not None:
        _refuse(dataset, planned, "text tokens", ~tokens.finite())
    return part


def _embeddings(dataset: EmbeddingDataset, planned: PlannedPart, modality: str, dtype: str) -> np.ndarray:
    stored = dataset.array(planned.shard, modality)
    chosen = stored if planned.places is None else stored[planned.places]
    with np.errstate(over="ignore"):  # values that overflow to infinity are refused below
        found = np.asarray(chosen, dtype)
    for start in range(0, len(found), _ROWS_AT_ONCE):
        bad = ~np.isfinite(found[start : start + _ROWS_AT_ONCE]).all(axis=1)
        _refuse(dataset, planned, f"{modality} embedding", bad, start)
    return found


def _token_states(stored: RaggedRows, places: np.ndarray | None, dtype: str) -> RaggedRows:
    chosen = stored if places is None else stored.take(places)
    if str(chosen.values.dtype) == dtype:
        return chosen
    return RaggedRows.packed(chosen.flat().astype(dtype), chosen.lengths)


def _refuse(dataset: EmbeddingDataset, planned: PlannedPart, what: str, bad: np.ndarray, start: int = 0) -> None:
    """Raise DatasetError naming the first bad row, if any."""
    if not bad.any():
        return
    row = start + int(bad.argmax())
    place = row if planned.places is None else int(planned.places[row])
    key = dataset.metadata(planned.shard, ("key",))["key"][place].as_py()
    raise DatasetError(
        f"{dataset.path}: {planned.source.name}, row {place} (key {key}): its {what} holds a number that is not finite",
        "Run `embedpipe verify`; encode the shard again, or leave the row out with `keys`",
    )
