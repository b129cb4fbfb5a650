"""Decide which rows to drop, by cosine alone or by cosine and image comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .search import NearEarlier

DEFAULT_THRESHOLD = 0.95
# With images: the least cosine of candidate pairs, how many per row, and the largest difference of equal images.
CANDIDATES_FROM = 0.75
CANDIDATES = 8
DEFAULT_DIFFERENCE = 0.025
_ROUNDING = 1e-6  # of a float32 cosine: that of a row and itself is not always 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """For each row of a data set, whether it is kept, and the predecessor that it repeats or is most similar to.

    kept: bool [n]. row: int64 [n], -1 if none is near. cosine: float32 [n], NaN if both have the same file. difference:
    float32 [n], between their images; NaN if not compared.
    """

    kept: np.ndarray
    row: np.ndarray
    cosine: np.ndarray
    difference: np.ndarray


def by_cosine(found: NearEarlier, threshold: float) -> Verdict:
    """Drop a row if a predecessor has at least that cosine, or the same file."""
    kept = np.asarray(found.cosine < threshold - _ROUNDING)  # false for NaN
    return Verdict(kept, found.row, found.cosine, np.full(len(kept), np.nan, np.float32))


def by_pictures(found: NearEarlier, difference: np.ndarray, threshold: float, most: float) -> Verdict:
    """Drop a row if a predecessor with a cosine of at least `threshold` has an image that differs by at most `most`.

    difference: float32, of each pair in `found.close`, NaN if an image is unavailable: such a pair is judged by its
    cosine, at DEFAULT_THRESHOLD. Of several predecessors, the one with the smallest difference counts.
    """
    close = found.close
    repeats = np.where(
        np.isnan(difference),
        close["cosine"] >= max(threshold, DEFAULT_THRESHOLD) - _ROUNDING,
        (difference <= most) & (close["cosine"] >= threshold - _ROUNDING),
    )
    order = np.lexsort((-close["cosine"], difference, ~repeats, close["row"]))  # NaN comes last
    rows, first = np.unique(close["row"][order], return_index=True)
    best = order[first]
    row, cosine = found.row.copy(), found.cosine.copy()
    apart = np.full(len(row), np.nan, np.float32)
    row[rows], cosine[rows], apart[rows] = close["of"][best], close["cosine"][best], difference[best]
    kept = ~np.isnan(found.cosine)
    kept[rows[repeats[best]]] = False
    return Verdict(kept, row, cosine, apart)
