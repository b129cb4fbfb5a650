"""Iterate over a data set in order, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..clip_model.encoder_card import EncoderCard
from ..errors import InputError, did_you_mean
from ..types import EmbeddingBatch
from .row_reader import RowReading, ShardArrays

DTYPES = ("float16", "float32")


def require_dtype(dtype: str) -> None:
    """Raise InputError listing the supported ones if batches cannot have that dtype."""
    if dtype not in DTYPES:
        raise InputError(f"no batches of {dtype!r}", did_you_mean(dtype, DTYPES))


def sequential(
    shards: ShardArrays,
    card: EncoderCard,
    rows: range,
    batch_size: int,
    dtype: str,
    sides: Sequence[str],
    reuse: bool,
    finite: bool,
) -> Iterator[EmbeddingBatch]:
    """Batches of `rows`, see `EmbeddingDataset.batches`."""
    require_dtype(dtype)
    if batch_size < 1:
        raise InputError(f"a batch of {batch_size} rows", "Give at least 1")
    return _sequential(shards, card.dim, rows, batch_size, dtype, sides, reuse, finite)


def _sequential(
    shards: ShardArrays,
    dim: int,
    rows: range,
    batch_size: int,
    dtype: str,
    sides: Sequence[str],
    reuse: bool,
    finite: bool,
) -> Iterator[EmbeddingBatch]:
    room: dict[str, np.ndarray] = {}
    with RowReading(shards, finite) as reading:
        for start in range(rows.start, rows.stop, batch_size):
            count = min(batch_size, rows.stop - start)
            if not (reuse and room):
                room = {side: np.empty((count, dim), dtype) for side in sides}
            for side in sides:
                reading.in_order(start, side, room[side][:count])
            found = {side: array[:count] for side, array in room.items()}
            yield EmbeddingBatch(image=found.get("image"), text=found.get("text"))
