"""Which rows a run trains on and which it holds out, as its record says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedpipe import files
from embedpipe.errors import RunMismatch
from embedpipe.load import EmbeddingDataset, splits
from embedpipe.load.split import CONTENT, KEY

from .record import RUN_FILE, json_object
from .resume import newest_checkpoint


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Which rows train and which are held out: a metadata column's values, or a share by a hash.

    by: what is hashed, see `embedpipe.load.splits`. Runs of earlier versions hash the key, and go on doing so.
    """

    column: str | None = None
    valid_share: float = 0.05
    by: str = CONTENT

    def facts(self) -> dict[str, Any]:
        """As records and checkpoints hold it: without `by` where a column or the earlier rule decides."""
        hashes_content = self.column is None and self.by == CONTENT
        return {"column": self.column, "valid_share": self.valid_share} | ({"by": CONTENT} if hashes_content else {})

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> SplitConfig:
        """From what `facts` gave."""
        return cls(facts["column"], facts["valid_share"], facts.get("by", KEY))

    def names(self, dataset: EmbeddingDataset, run: str = "") -> np.ndarray:
        """The split of each row, str [n]. run: the one that was split so, if it is not made now.

        Raises RunMismatch where `dataset` lacks the column by which the run was split.
        """
        if run and self.column is not None and self.column not in dataset.column_names():
            raise RunMismatch(
                f"{run}: held out rows by the column {self.column!r}, which {dataset.path} lacks",
                "Give `split_column` or `valid_share` to say which rows to take",
            )
        return splits(dataset, self.column, self.valid_share, by=self.by)

    def continued(self, folders: Iterable[str]) -> SplitConfig:
        """The same by the rule of the runs in `folders`, any fsspec url: those of earlier versions hash the key."""
        if self.column is None and any("by" not in found for found in map(recorded_split, folders) if found):
            return dataclasses.replace(self, by=KEY)
        return self


def recorded_split(folder: str) -> Mapping[str, Any] | None:
    """How the run in `folder` was split, from its record or its newest checkpoint; None without either."""
    content = json_object(files.join(folder, RUN_FILE))
    if content is None:
        content = (newest_checkpoint(folder) or {}).get("identity")
    found = (content or {}).get("split")
    return found if isinstance(found, dict) else None
