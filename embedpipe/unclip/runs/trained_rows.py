"""Which rows a run trained on, kept beside it: so that none of them is ever taken for a held-out one.

RUN/train_rows.npy     uint64 [n], ascending: see `embedpipe.load.identity.row_marks`
"""

from __future__ import annotations

import io

import numpy as np

from embedpipe import files

TRAINED_ROWS = "train_rows.npy"


def write_trained_rows(folder: str, marks: np.ndarray, extends: bool = False) -> None:
    """Record that the run in `folder` trains on the rows with these marks, see `row_marks`.

    Called before the training, so that no checkpoint is without them, and again after its end. extends: leave it to the
    second call. A run whose rows have grown is known by those that it had, until something was learnt of the new ones.
    """
    if extends or not len(marks):
        return  # none: pictures decoded by an earlier version, which are not told apart
    stream = io.BytesIO()
    np.save(stream, np.unique(marks), allow_pickle=False)
    files.write_bytes(files.join(folder, TRAINED_ROWS), stream.getvalue())


def read_trained_rows(folder: str) -> np.ndarray | None:
    """uint64, ascending; None for a run of an earlier version, or a damaged file."""
    data = files.read_if_there(files.join(folder, TRAINED_ROWS))
    if data is None:
        return None
    try:
        found: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return found if found.dtype == np.uint64 and found.ndim == 1 else None
