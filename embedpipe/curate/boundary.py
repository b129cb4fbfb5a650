"""Pairs of rows around a threshold, with their pictures where those can still be found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..load import EmbeddingDataset
from ..load.stored import stored_pictures
from .duplicates import Nearest
from .gather import gather
from .page import Pair


def pairs_around(
    dataset: EmbeddingDataset, found: Nearest, threshold: float, count: int, data: str | None
) -> Sequence[Pair]:
    """The `count` pairs nearest to the threshold, half of them on each side. `data`: where image shards are now."""
    above = np.flatnonzero(found.cosine >= threshold)
    below = np.flatnonzero((found.cosine < threshold) & (found.row >= 0))
    above = above[np.argsort(found.cosine[above], kind="stable")][: count // 2]
    below = below[np.argsort(-found.cosine[below], kind="stable")][: count - len(above)]
    rows = np.concatenate([above, below])
    columns = ("src_shard", "key", "caption")
    left, right = (gather(dataset, which, columns).to_pylist() for which in (found.row[rows], rows))
    wanted = [(row["src_shard"], row["key"]) for row in (*left, *right)]
    pictures = stored_pictures(dataset, wanted, data)
    return [
        Pair(
            cosine=float(found.cosine[row]),
            dropped=bool(found.cosine[row] >= threshold),
            left=_said(kept),
            right=_said(other),
            left_picture=pictures.get((kept["src_shard"], kept["key"])),
            right_picture=pictures.get((other["src_shard"], other["key"])),
        )
        for row, kept, other in zip(rows, left, right, strict=True)
    ]


def _said(row: dict[str, object]) -> str:
    return f"{row['src_shard']} {row['key']}: {row['caption'] or ''}"
