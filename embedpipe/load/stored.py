"""The pictures behind rows of a data set, where the image shards they were made from are still to be had."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..read import Reader, SampleRules, open_reader
from ..read.lookup import find_images
from .dataset import EmbeddingDataset


def open_source(dataset: EmbeddingDataset, data: str | None = None, captions: bool = False) -> Reader | None:
    """A reader of what `dataset` was made of, at `data` or where it was made; None where it is no longer there.

    captions: read them as they were read then; else they are left out. Raises InputError when there is nothing at
    `data`, if that is given.
    """
    made = dataset.run.options
    rules = SampleRules(
        caption_key=str(made.get("caption_key", "caption")),
        need_caption=captions and bool(made.get("texts", True)),
        image_column=made.get("image_column"),
        key_column=made.get("key_column"),
    )
    try:
        reader = open_reader(data or dataset.run.source, rules, str(made.get("input", "auto")))
        reader.shards(())
    except InputError:
        if data is not None:
            raise
        return None
    return reader


def stored_pictures(
    dataset: EmbeddingDataset, wanted: Sequence[tuple[str, str]], data: str | None = None
) -> dict[tuple[str, str], bytes]:
    """Encoded image bytes by (source shard, key), from `data` or from where the data set was made; others left out.

    Raises InputError when there are none at `data`, if that is given.
    """
    reader = open_source(dataset, data)
    return find_images(reader, dataset.run.plan, wanted) if reader is not None else {}
