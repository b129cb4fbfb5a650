"""Which rows a batch was made of whose loss was NaN."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dalle2_core.errors import NonFiniteLoss
from dalle2_core.training import Processes
from embedpipe import files
from embedpipe.load import EmbeddingDataset

_NOT_FINITE = "nonfinite_batch.json"


@contextlib.contextmanager
def report_rows(
    out: str, dataset: EmbeddingDataset, rows_of_step: Callable[[int], np.ndarray], together: Processes
) -> Iterator[None]:
    """When a loss is not finite, leave the rows of its batch in a file in the folder `out` and say so.

    rows_of_step: the rows of the global batch that follows so many steps.
    """
    try:
        yield
    except NonFiniteLoss as problem:
        if together.is_first:
            rows = rows_of_step(problem.step - 1)
            found = dataset.rows([int(row) for row in rows], ("src_shard", "key"))
            named = [{"row": int(row), **columns} for row, columns in zip(rows, found, strict=True)]
            content = json.dumps({"step": problem.step, "rows": named}, indent=1) + "\n"
            files.write_bytes(files.join(out, _NOT_FINITE), content.encode())
        raise NonFiniteLoss(f"{problem}. The rows of that batch: {Path(out) / _NOT_FINITE}", problem.step) from problem
