"""Rows of a data set as they are shown to people: their pictures where those can still be found, and what they say."""

from __future__ import annotations

import numpy as np

from ..load import EmbeddingDataset
from ..load.stored import stored_pictures
from .gather import gather
from .page import Shown

_CHARACTERS = 200


def shown(dataset: EmbeddingDataset, rows: np.ndarray, images: str | None) -> dict[int, Shown]:
    """By row number: what a page shows of it. images: where the image shards are now, None for where they were.

    Raises InputError when there are none at `images`.
    """
    different = np.unique(rows)
    about = gather(dataset, different, ("src_shard", "key", "caption")).to_pylist()
    pictures = stored_pictures(dataset, [(row["src_shard"], row["key"]) for row in about], images)
    return {
        int(number): Shown(
            f"{row['src_shard']} {row['key']}: {(row['caption'] or '')[:_CHARACTERS]}",
            pictures.get((row["src_shard"], row["key"])),
        )
        for number, row in zip(different, about, strict=True)
    }
