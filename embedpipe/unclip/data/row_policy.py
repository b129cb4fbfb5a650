"""Rows of embeddings that no model should see: counted, refused, mended or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedpipe.errors import DatasetError
from embedpipe.load import EmbeddingDataset

_NORM_TOLERANCE = 0.01
_SMALLEST_NORM = 1e-6
# All rows are looked at before the first step up to this size, a matter of seconds; beyond, as they are read.
_MOST_BYTES_TO_SCAN = 16 << 30
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """What becomes of rows that no model should see. By default they are counted and refused.

    normalise: bring every row to norm 1. drop_nonfinite: leave out rows with NaN or infinity, or of zeros alone.
    """

    normalise: bool = False
    drop_nonfinite: bool = False

    def checked(self, dataset: EmbeddingDataset, rows: np.ndarray, sides: Sequence[str]) -> np.ndarray:
        """`rows`, or those of them that are finite on these sides where the policy drops the others.

        Raises DatasetError that counts what is wrong and names the option that accepts it.
        """
        card = dataset.card
        size = len(rows) * card.dim * len(sides) * np.dtype(card.dtype).itemsize
        if size > _MOST_BYTES_TO_SCAN and not self.drop_nonfinite:
            return rows
        whole = np.ones(len(rows), bool)
        off: dict[str, list[np.ndarray]] = {side: [] for side in sides}
        broken = dict.fromkeys(off, 0)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            for side in off:
                norms = _norms(dataset.require(side)[part].astype(np.float32))
                usable = norms > _SMALLEST_NORM
                broken[side] += int((~usable).sum())
                whole[start : start + len(part)] &= usable
                off[side].append(norms[usable & (np.abs(norms - 1) > _NORM_TOLERANCE)])
        if not self.drop_nonfinite:
            _refuse_broken(dataset.path, broken)
        if not self.normalise:
            _refuse_off(dataset.path, {side: np.concatenate(norms) for side, norms in off.items() if norms})
        return rows[whole]

    def taken(self, path: str, sides: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embeddings by side, float32 [n, d], as they are trained on. Raises DatasetError, see `checked`."""
        norms = {side: _norms(rows) for side, rows in sides.items()}
        _refuse_broken(path, {side: int((it <= _SMALLEST_NORM).sum()) for side, it in norms.items()})
        if self.normalise:
            return {side: rows / norms[side][:, None] for side, rows in sides.items()}
        _refuse_off(path, {side: it[np.abs(it - 1) > _NORM_TOLERANCE] for side, it in norms.items()})
        return dict(sides)


def _norms(rows: np.ndarray) -> np.ndarray:
    """float32 [n]; 0 for a row with NaN or infinity."""
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(np.where(np.isfinite(squares), squares, 0.0)).astype(np.float32)


def _refuse_broken(path: str, counts: dict[str, int]) -> None:
    if any(counts.values()):
        found = " and ".join(f"{count:,} {side}" for side, count in counts.items() if count)
        raise DatasetError(
            f"{path}: {found} rows hold NaN or infinity, or zeros alone",
            "Give `drop_nonfinite=True` to leave them out; `embedpipe verify` says whether they were damaged",
        )


def _refuse_off(path: str, norms: dict[str, np.ndarray]) -> None:
    off = {side: it for side, it in norms.items() if len(it)}
    if off:
        found = " and ".join(f"{len(it):,} {side}" for side, it in off.items())
        least, most = min(it.min() for it in off.values()), max(it.max() for it in off.values())
        raise DatasetError(
            f"{path}: {found} rows are not of norm 1 (norms from {least:.3g} to {most:.3g})",
            "Give `normalise=True` to bring them to it, or encode them again",
        )
