"""Embeddings aligned with image tars, for DALLE2-pytorch's decoder loader (dataloaders/decoder_loader.py).

    OUT/img_emb/img_emb_00003.npy   [highest index + 1, dim]   for the tar called 3.tar or 00003.tar
    OUT/text_emb/text_emb_00003.npy

That loader takes the number in a tar's name, opens the .npy of that number, and takes the row given by the last digits
of the sample's key. A row of zeros means no embedding. It parses a number from every file name in the folder, so the
folder contains nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DatasetError, InputError
from ..load import EmbeddingDataset
from ..manifest import FileRecord, ShardManifest
from ..read.webdataset import TAR_SUFFIXES
from ..store import layout
from ..store.hashed_writer import write_npy
from ..store.rejects import read_rejects
from .base import ExportConfig, ExportPart, PlannedPart

# Up to this many rows, an index far beyond the number of samples does not indicate a wrong --index-width.
_ROWS_ALWAYS = 100_000
_ROWS_FOR_A_SAMPLE = 100


class Aligned:
    """An .npy per modality and image tar, row = the index in the sample's key."""

    folders: tuple[str, ...] = ("img_emb", "text_emb")

    def __init__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> None:
        self._dataset = dataset
        self._numbers = {part.number: _tar_number(part.source.name) for part in plan}
        _refuse_repeats(dataset, plan, self._numbers)
        self._digits = max(5, len(str(max(self._numbers.values()))))
        self._width = config.index_width or _index_width(dataset, plan[0])
        self.options: dict[str, Any] = {"index_width": self._width}

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """One file per modality."""
        places = self._places(part)
        rows = max(int(places.max()), self._last_reject(part)) + 1
        if rows > max(_ROWS_ALWAYS, _ROWS_FOR_A_SAMPLE * len(part)):
            raise InputError(
                f"{part.planned.source.name}: {rows:,} rows for {len(part):,} samples, by the last {self._width} "
                "digits of their keys",
                "Give another `index_width`",
            )
        written = []
        for modality, array in (("image", part.image), ("text", part.text)):
            if array is not None:
                self._refuse_zeros(part, modality, array)
                spread = np.zeros((rows, array.shape[1]), array.dtype)
                spread[places] = array
                path = layout.embeddings(modality, self._numbers[part.planned.number], self._digits)
                written.append(write_npy(out, path, spread))
        return tuple(written)

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """Nothing."""

    def opened_by(self, out: str) -> str:
        """DALLE2-pytorch's loader, configured to skip samples without an embedding."""
        return (
            f"dalle2_pytorch.dataloaders.create_image_embedding_dataloader(tar_url, num_workers, batch_size, "
            f'img_embeddings_url="{out}/img_emb", index_width={self._width}, '
            "handler=webdataset.handlers.warn_and_continue)"
        )

    def _places(self, part: ExportPart) -> np.ndarray:
        """The row of each sample, int64 [n]."""
        keys: list[str] = part.metadata["key"].to_pylist()
        found = [_index(key, self._width) for key in keys]
        for key, index in zip(keys, found, strict=True):
            if index is None:
                raise InputError(
                    f"{part.planned.source.name}: key {key!r} does not end in {self._width} digits, so that the loader "
                    "cannot tell its row",
                    "Give another `index_width`",
                )
        places = np.array(found, np.int64)
        order, counts = np.unique(places, return_counts=True)
        if (counts > 1).any():
            both = [key for key, index in zip(keys, found, strict=True) if index == order[counts.argmax()]]
            raise InputError(
                f"{part.planned.source.name}: keys {both[0]} and {both[1]} end in the same {self._width} digits",
                "Give a larger `index_width`",
            )
        return places

    def _last_reject(self, part: ExportPart) -> int:
        """The highest index of a sample without embedding, -1 if there is none: the loader reads its row, too."""
        entry = self._dataset.shards[part.planned.shard].manifest
        keys = read_rejects(self._dataset.path, entry, self._dataset.run.shard_digits)["key"].to_pylist()
        found = (_index(key, self._width) for key in keys)
        return max((index for index in found if index is not None), default=-1)

    def _refuse_zeros(self, part: ExportPart, modality: str, array: np.ndarray) -> None:
        zeros = ~array.any(axis=1)
        if zeros.any():
            key = part.metadata["key"][int(zeros.argmax())].as_py()
            raise DatasetError(
                f"{part.planned.source.name}: the {modality} embedding of key {key} is all zeros, which means to the "
                "loader that there is none",
                "Leave the row out with `keys`",
            )


def _tar_number(name: str) -> int:
    """The number that the loader parses from the name of a tar. Raises InputError if there is none."""
    file = name.rpartition("/")[2]
    number = file.partition(".")[0]
    if not re.fullmatch(r"[0-9]+", number) or not file.endswith(TAR_SUFFIXES):
        raise InputError(
            f"input shard {name}: the loader finds embeddings by the number in a tar's name, such as 00003.tar, and "
            "this name is none",
            "Encode numbered tars, as `embedpipe fetch` and img2dataset write them",
        )
    return int(number)


def _refuse_repeats(dataset: EmbeddingDataset, plan: Sequence[PlannedPart], numbers: dict[int, int]) -> None:
    first: dict[int, str] = {}
    for part in plan:
        number = numbers[part.number]
        if number in first:
            raise InputError(
                f"{dataset.path}: input shards {first[number]} and {part.source.name} have the same number",
                "Encode them into data sets of their own",
            )
        first[number] = part.source.name


def _index(key: str | None, width: int) -> int | None:
    """The last `width` characters of a key as a number, if they are digits."""
    end = (key or "")[-width:]
    return int(end) if re.fullmatch(r"[0-9]+", end) else None


def _index_width(dataset: EmbeddingDataset, part: PlannedPart) -> int:
    """The number of digits after the tar's number in the keys of the first shard, if all keys have this form."""
    keys: list[str] = dataset.metadata(part.shard, ("key",))["key"].to_pylist()
    stem = part.source.name.rpartition("/")[2].partition(".")[0]
    rests = {len(key) - len(stem) if re.fullmatch(rf"{stem}[0-9]+", key) else 0 for key in keys}
    if len(rests) != 1 or not (width := rests.pop()):
        raise InputError(
            f"{part.source.name}: cannot tell which digits of the key {keys[0]!r} are the sample's place in its tar",
            "Give `index_width`, the number of digits at their end",
        )
    return width
