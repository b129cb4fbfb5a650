"""Pairs of rows around a threshold, for the page that shows where it lies."""

from __future__ import annotations

import numpy as np

from ..load import EmbeddingDataset
from .duplicates import Nearest
from .page import Line, Section
from .shown import shown


def pairs_around(
    dataset: EmbeddingDataset, found: Nearest, threshold: float, count: int, images: str | None
) -> Section:
    """The `count` pairs nearest to the threshold, half of them on each side. images: where the image shards are now.

    Pairs of the same file are left out: there is nothing to judge.
    """
    kept = found.kept(threshold)
    rows = _nearest_to(found, kept, count)
    rows = rows[np.argsort(-found.cosine[rows], kind="stable")]
    of = found.row[rows]
    about = shown(dataset, np.concatenate([rows, of]), images)
    return Section(
        f"Pairs around the threshold of {threshold:g}, most alike first. Of those in red the right-hand one is dropped",
        [
            Line(f"{found.cosine[row]:.4f}", bool(~kept[row]), (about[first], about[row]))
            for row, first in zip(rows.tolist(), of.tolist(), strict=True)
        ],
        ("cosine", "kept", "the other"),
    )


def _nearest_to(found: Nearest, kept: np.ndarray, count: int) -> np.ndarray:
    above = np.flatnonzero(~kept & ~np.isnan(found.cosine))
    below = np.flatnonzero(kept & (found.row >= 0))
    above = above[np.argsort(found.cosine[above], kind="stable")]
    below = below[np.argsort(-found.cosine[below], kind="stable")]
    # What one side lacks, the other gives.
    of_above = min(len(above), max(count - count // 2, count - len(below)))
    return np.concatenate([above[:of_above], below[: count - of_above]])
