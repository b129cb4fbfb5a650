"""Image shards and embeddings (`embedpipe`), joined, become batches for a decoder's stage (`dalle2_core`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dalle2_core.conditioning import DecoderBatch
from dalle2_core.presets.decoder import DecoderRecipe
from embedpipe.errors import DatasetError, InputError
from embedpipe.images.open import DEFAULT_MAX_PIXELS
from embedpipe.load import EmbeddingDataset
from embedpipe.load.images.join import Join, join_images
from embedpipe.load.images.loader import ImageBatch, ImageLoader, ImageOptions
from embedpipe.load.images.source import Images, open_source, places_of, sources_of
from embedpipe.progress import Listener, silent
from embedpipe.types import EmbeddingBatch

from .row_policy import RowPolicy


@dataclass(frozen=True, slots=True)
class ImageSource:
    """How images are read. drop_unjoined: leave out rows whose image is missing, another one, or not theirs alone.

    threads: that decode. max_pixels: no larger image is decoded.
    """

    drop_unjoined: bool = False
    threads: int = 4
    max_pixels: int = DEFAULT_MAX_PIXELS
    rows: RowPolicy = field(default_factory=RowPolicy)


@dataclass(frozen=True, slots=True)
class DecoderRows:
    """A data set with its images, and how they are taken."""

    dataset: EmbeddingDataset
    join: Join
    source: ImageSource

    def loader(
        self, rows: np.ndarray, size: int, batch_size: int, seed: int, tokens: bool, rank: int = 0, world: int = 1
    ) -> ImageLoader:
        """Shuffled batches of some rows (ascending), images of `size` pixels a side."""
        options = ImageOptions(size, self.source.threads, self.source.max_pixels)
        return ImageLoader(
            self.dataset, self.join.only(rows), options, batch_size, seed, tokens=tokens, rank=rank, world=world
        )

    def in_order(self, rows: np.ndarray, size: int, batch_size: int, tokens: bool) -> Iterator[DecoderBatch]:
        """Some rows (ascending), each once, in an order that is the data's own."""
        return map(self.batch, self.loader(rows, size, batch_size, 0, tokens).all())

    def batch(self, batch: ImageBatch) -> DecoderBatch:
        """What a loader gave. Raises DatasetError for embeddings that are not finite, or not of norm 1."""
        return self.told(torch.from_numpy(batch.pixels), batch.embeddings)

    def told(self, images: Tensor, stored: EmbeddingBatch, encoded: bool = False) -> DecoderBatch:
        """Images, or what a stage made of them, with what is stored of them. Raises as `batch`."""
        assert stored.image is not None
        taken = self.source.rows.taken(self.dataset.path, {"image": stored.image})
        return DecoderBatch(
            images,
            torch.from_numpy(taken["image"]),
            None if stored.text_tokens is None else torch.from_numpy(stored.text_tokens),
            None if stored.text_mask is None else torch.from_numpy(stored.text_mask),
            encoded,
        )


def open_embeddings(emb: str, recipe: DecoderRecipe) -> tuple[EmbeddingDataset, int | None]:
    """The data set `emb`, and the width of its text tokens where a stage wants them.

    Raises DatasetError, InputError: no rows, no image embeddings, predicted ones, no token states, too long ones.
    """
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    dataset.require("image")
    if dataset.card.predicted_by is not None:
        raise DatasetError(
            f"{emb}: its image embeddings were predicted by a {dataset.card.predicted_by.kind}, not made of images",
            "Give the data set that they were predicted for",
        )
    wanted = any(it.reads_text for it in recipe.stages)
    return dataset, _token_width(dataset, recipe) if wanted else None


def open_joined_images(
    images: Images,
    dataset: EmbeddingDataset,
    source: ImageSource,
    cache: str,
    listener: Listener = silent,
    keep: bool = True,
) -> DecoderRows:
    """The images at `images` (None: where they were) joined with the rows of `dataset`; see `join_images`.

    Raises InputError where there are none, DatasetError for rows that do not fit their images.
    """
    at = ", ".join(places_of(images) or sources_of(dataset))
    reader = open_source(dataset, images)
    if reader is None:
        raise InputError(f"{at or dataset.path}: the image shards are not there", "Give their folders with `images`")
    join = join_images(dataset, reader, cache, at, listener, drop=source.drop_unjoined, keep=keep)
    return DecoderRows(dataset, join, source)


def _token_width(dataset: EmbeddingDataset, recipe: DecoderRecipe) -> int:
    """Of the token states. Raises DatasetError where there are none, InputError where a stage cannot take them."""
    column = dataset.require_text_tokens()
    longest = int(column.lengths().max(initial=0))
    for number, part in enumerate(recipe.stages, 1):
        if part.reads_text and longest > part.network.max_text_len:
            raise InputError(
                f"{dataset.path}: the longest text has {longest} tokens, but stage {number} takes up to "
                f"{part.network.max_text_len}",
                f"Give `stages.{number}.network.max_text_len={longest}`",
            )
    return column.width
