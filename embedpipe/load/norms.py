"""Unnormalised embeddings, as the tower's projection gave them: the stored unit rows times the stored norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa

from ..errors import DatasetError
from ..types import EmbeddingBatch
from .row_index import Index, as_row, as_rows

_WITHOUT = (
    "Decoders that take image_embeds as a projection gives them (diffusers') and priors that standardise raw "
    "embeddings (Karlo's, Kandinsky's) need them: encode the data again; all else works without"
)
_ROWS_AT_ONCE = 65_536


class Norms:
    """The norms of a data set's rows for one modality, from their metadata column: `norms(rows)` → float32 [n].

    Raises DatasetError for a row without one.
    """

    def __init__(self, path: str, name: str, read: Callable[[np.ndarray], pa.Array]) -> None:
        self._path = path
        self._name = name
        self._read = read

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows: int64 [n]. float32 [n]."""
        found = self._read(rows)
        if found.null_count:
            row = rows[int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])]
            raise DatasetError(
                f"{self._path}: {self._name} is null in {found.null_count} of {len(rows)} rows, first in row {row}; "
                "they come from a data set without norms",
                "Encode that one again, or leave the rows out: "
                f"`embedpipe.filter({self._path!r}, OUT, where='{self._name} is not null', materialise=True)`",
            )
        return np.asarray(found.to_numpy().astype(np.float32))


def norms_missing(path: str, modality: str, name: str) -> DatasetError:
    """The error for a data set with normalised rows but without the column `name`."""
    return DatasetError(f"{path}: was written without norms: it has {modality} embeddings, but no {name}", _WITHOUT)


class Unit(Protocol):
    """The interface that RawColumn needs from the column of stored rows."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int:
        """Width of a row."""
        ...

    def __getitem__(self, index: Index) -> np.ndarray: ...


class RawColumn:
    """One modality's embeddings before normalisation, as the projection gave them: always float32.

    `len(raw)`, `raw.dim`, `raw[i]` → [dim], `raw[a:b]` and `raw[[3, 1, 2]]` → [n, dim], `raw.norms([3, 1, 2])` → [n],
    `raw.read()` → all of it. They are computed lazily, with the rounding error of the stored dtype (float16: 2⁻¹¹ of
    each value). Raises DatasetError for rows with unknown norm: those that `merge` copied from a data set without
    norms.
    """

    def __init__(self, stored: Unit, norms: Norms | None) -> None:
        self._stored = stored
        self._norms = norms

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self._stored.dim

    def __getitem__(self, index: Index) -> np.ndarray:
        if isinstance(index, int | np.integer):
            only: np.ndarray = self._rows(np.array([as_row(index, len(self))]))[0]
            return only
        return self._rows(as_rows(index, len(self)))

    def norms(self, index: slice | list[int] | np.ndarray = slice(None)) -> np.ndarray:
        """float32 [n]: the norms of the given rows, or of all."""
        rows = as_rows(index, len(self))
        if self._norms is None:
            return np.asarray(np.linalg.norm(self._rows(rows), axis=1))
        return self._norms(rows)

    def read(self) -> np.ndarray:
        """All rows as float32 [n, dim]: for data that fits in memory."""
        out = np.empty((len(self), self.dim), np.float32)
        for start in range(0, len(self), _ROWS_AT_ONCE):
            part = out[start : start + _ROWS_AT_ONCE]
            part[...] = self._rows(np.arange(start, start + len(part)))
        return out

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        found = self._stored[rows].astype(np.float32)
        return found if self._norms is None else found * self._norms(rows)[:, None]


def scaled(batches: Iterator[EmbeddingBatch], start: int, norms: dict[str, Norms | None]) -> Iterator[EmbeddingBatch]:
    """Scale float32 batches of rows, from `start` on and in order, by their norms in place."""
    for batch in batches:
        count = 0
        for side, known in norms.items():
            rows: np.ndarray = getattr(batch, side)
            count = len(rows)
            if known is not None:
                rows *= known(np.arange(start, start + count))[:, None]
        yield batch
        start += count
