"""The pictures behind rows of a data set, where the image shards they were made from are still to be had."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..read import SampleRules, open_reader
from ..read.lookup import find_images
from .dataset import EmbeddingDataset


def stored_pictures(
    dataset: EmbeddingDataset, wanted: Sequence[tuple[str, str]], data: str | None = None
) -> dict[tuple[str, str], bytes]:
    """Encoded image bytes by (source shard, key), from `data` or from where the data set was made; others left out.

    Raises InputError when there are none at `data`, if that is given.
    """
    made = dataset.run.options
    rules = SampleRules(need_caption=False, image_column=made.get("image_column"), key_column=made.get("key_column"))
    try:
        reader = open_reader(data or dataset.run.source, rules, str(made.get("input", "auto")))
        reader.shards(())
    except InputError:
        if data is not None:
            raise
        return {}
    return find_images(reader, dataset.run.plan, wanted)
