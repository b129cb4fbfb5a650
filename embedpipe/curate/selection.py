"""The output of dedup and filter: selected rows as a key subset and, optionally, as a data set."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from .. import files, subset
from ..errors import InputError
from ..load import EmbeddingDataset
from ..manifest import RunCard
from ..progress import Listener
from ..redact import redacted_values
from .materialise import materialise, refuse_other_output, selection_run

REPORT = "report.json"


def begin_selection(dataset: EmbeddingDataset, out: str) -> None:
    """Prepare `out` for writing, with its lock held. Raises RunMismatch if it contains something else."""
    refuse_other_output(dataset, out)
    files.sweep_temporaries(out)


def refuse_other_rows(dataset: EmbeddingDataset, rows: np.ndarray, out: str, made_by: str) -> RunCard:
    """The run card of `rows` as a data set. Raises RunMismatch if `out` contains one of other rows."""
    run = selection_run(dataset, rows, made_by)
    refuse_other_output(dataset, out, run)
    return run


def write_selected(
    dataset: EmbeddingDataset,
    rows: np.ndarray,
    out: str,
    made_by: str,
    whole: bool,
    threads: int | None,
    listen: Listener,
) -> None:
    """Write `rows` (ascending) as kept.parquet and, if the data set has uids, as subset.npy.

    whole: also as an embedding data set. Raises RunMismatch if `out` contains one of other rows.
    """
    run = refuse_other_rows(dataset, rows, out, made_by)
    files.remove(files.join(out, REPORT))  # written last: without it the other files may be from two runs
    subset.write_subset(dataset, files.join(out, subset.KEPT), rows)
    files.remove(files.join(out, subset.UIDS))
    if "uid" in dataset.column_names():
        with contextlib.suppress(InputError):  # a column of that name with other contents
            subset.write_uids(dataset, files.join(out, subset.UIDS), rows)
    if whole:
        materialise(dataset, rows, out, run, threads, listen)


def end_selection(out: str, report: dict[str, Any]) -> None:
    """Write report.json, last."""
    files.write_bytes(files.join(out, REPORT), (json.dumps(redacted_values(report), indent=1) + "\n").encode())
