"""Cards that show a row in a report: its image, if it can still be found, and its metadata."""

from __future__ import annotations

import numpy as np

from ..load import EmbeddingDataset
from ..load.images.source import Images, source_images
from ..load.metadata import gather_metadata
from .page import RowCard

_CHARACTERS = 200


def row_cards(dataset: EmbeddingDataset, rows: np.ndarray, images: Images) -> dict[int, RowCard]:
    """Cards by row number. images: where the image shards are now, None for where they were.

    Raises InputError if there are none at `images`.
    """
    different = np.unique(rows)
    about = gather_metadata(dataset, different, ("src_shard", "key", "caption")).to_pylist()
    pictures = source_images(dataset, [(row["src_shard"], row["key"]) for row in about], images)
    return {
        int(number): RowCard(
            f"{row['src_shard']} {row['key']}: {(row['caption'] or '')[:_CHARACTERS]}",
            pictures.get((row["src_shard"], row["key"])),
        )
        for number, row in zip(different, about, strict=True)
    }
