"""Decide which rows to drop, by cosine alone or by cosine and image comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .search import NearEarlier

DEFAULT_THRESHOLD = 0.95
# With pictures: from this cosine on, and so many for each row, pairs are looked at; and what still is one picture.
CANDIDATES_FROM = 0.75
CANDIDATES = 8
DEFAULT_DIFFERENCE = 0.025
_ROUNDING = 1e-6  # of a cosine in float32: a row and itself are not always at 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """For each row of a data set whether it stays, and the row before it that it repeats, or is most like.

    kept: bool [n]. row: int64 [n], -1 where none was near. cosine: float32 [n], NaN where the two have one file.
    difference: float32 [n], of their pictures; NaN where these were not compared.
    """

    kept: np.ndarray
    row: np.ndarray
    cosine: np.ndarray
    difference: np.ndarray


def by_cosine(found: NearEarlier, threshold: float) -> Verdict:
    """A row goes when a predecessor is at least as near as that, or has its file."""
    kept = np.asarray(found.cosine < threshold - _ROUNDING)  # false where it is NaN
    return Verdict(kept, found.row, found.cosine, np.full(len(kept), np.nan, np.float32))


def by_pictures(found: NearEarlier, difference: np.ndarray, threshold: float, most: float) -> Verdict:
    """A row goes when a predecessor at least as near as `threshold` has a picture that differs by `most` at most.

    difference: float32, of each pair in `found.close`, NaN where a picture is not to be had: such a pair is judged by
    its cosine, at DEFAULT_THRESHOLD. Of several predecessors the one whose picture differs least counts.
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
