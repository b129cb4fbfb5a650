"""Example pairs around the threshold, for an HTML page."""

from __future__ import annotations

import numpy as np

from ...load import EmbeddingDataset
from ...load.images.source import Images
from ..page import Line, Section
from ..row_cards import row_cards
from .decision import Verdict


def pairs_around(
    dataset: EmbeddingDataset, verdict: Verdict, threshold: float, most: float | None, count: int, images: Images
) -> Section:
    """The `count` pairs nearest to the threshold, half on each side. images: where the image shards are now.

    most: the image difference that decided; None: the cosine did. Pairs of the same file are left out: there is nothing
    to judge.
    """
    apart = -verdict.cosine if most is None else verdict.difference
    rows = _nearest_to(verdict, apart, count)
    rows = rows[np.argsort(apart[rows], kind="stable")]
    of = verdict.row[rows]
    about = row_cards(dataset, np.concatenate([rows, of]), images)
    at = f"the threshold of {threshold:g}" if most is None else f"a picture difference of {most:g}"
    return Section(
        f"Pairs around {at}, most alike first. Of those in red the right-hand one is dropped",
        [
            Line(_said(verdict, row), bool(~verdict.kept[row]), (about[first], about[row]))
            for row, first in zip(rows.tolist(), of.tolist(), strict=True)
        ],
        ("cosine" if most is None else "cosine, difference", "kept", "the other"),
    )


def _said(verdict: Verdict, row: int) -> str:
    apart = verdict.difference[row]
    return f"{verdict.cosine[row]:.4f}" + ("" if np.isnan(apart) else f", {apart:.3f}")


def _nearest_to(verdict: Verdict, apart: np.ndarray, count: int) -> np.ndarray:
    known = ~np.isnan(apart) & (verdict.row >= 0)
    above, below = np.flatnonzero(~verdict.kept & known), np.flatnonzero(verdict.kept & known)
    above = above[np.argsort(-apart[above], kind="stable")]
    below = below[np.argsort(apart[below], kind="stable")]
    # If one side has too few, the other has more.
    of_above = min(len(above), max(count - count // 2, count - len(below)))
    return np.concatenate([above[:of_above], below[: count - of_above]])
