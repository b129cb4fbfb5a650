"""Which rows a run trained on, kept beside it: so that none of them is ever taken for a held-out one.

RUN/train_rows.npy     uint64 [n], ascending: see `embedpipe.load.identity.row_marks`
"""

from __future__ import annotations

import io

import numpy as np

from embedpipe import files
from embedpipe.load import EmbeddingDataset
from embedpipe.load.identity import row_marks

_FILE = "train_rows.npy"


def write_trained_rows(folder: str, dataset: EmbeddingDataset, rows: np.ndarray) -> None:
    """Record that the run in `folder` trains on `rows` of `dataset`."""
    stream = io.BytesIO()
    np.save(stream, np.unique(row_marks(dataset, rows)), allow_pickle=False)
    files.write_bytes(files.join(folder, _FILE), stream.getvalue())


def read_trained_rows(folder: str) -> np.ndarray | None:
    """uint64, ascending; None for a run of an earlier version, or a damaged file."""
    data = files.read_if_there(files.join(folder, _FILE))
    if data is None:
        return None
    try:
        found: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return found if found.dtype == np.uint64 and found.ndim == 1 else None
