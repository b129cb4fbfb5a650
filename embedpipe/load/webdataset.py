"""Image shards with the embeddings of their images, as a pipeline of webdataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import webdataset as wds
from webdataset import tariterators

from .. import files
from ..errors import DatasetError, InputError
from ..read import Reader, locations
from ..read.webdataset import WebdatasetReader
from ..renamed import renamed_keyword
from .dataset import EmbeddingDataset
from .images.parts import PartsReader
from .images.source import Images, open_source, places_of, sources_of

Sample = dict[str, Any]


@renamed_keyword(data="images")
def webdataset_pipeline(
    dataset: EmbeddingDataset, images: Images = None, columns: Sequence[str] = (), decode: str | None = None
) -> wds.DataPipeline:
    """Samples of image shards ("jpg", "txt", "json" …) with "row", "image_embedding" and "text_embedding" [dim].

    Each row comes once, in whatever rank and worker reads its shard; samples that became no row are left out. Go on
    with `.compose(wds.shuffle(1000), wds.map(…), wds.batched(64))`.

    images: where the image shards are now (a place or several), None for where they were; any fsspec url. columns:
    metadata to add. decode: as webdataset decodes images: "torchrgb", "pil" …; None leaves the bytes.

    Raises InputError where there are no tars, DatasetError where one has changed since it was encoded, or where keys
    have dots in their file names: webdataset's end at the first.
    """
    join = _Join(dataset, _places(dataset, images), tuple(columns))
    return wds.DataPipeline(
        wds.SimpleShardList(list(join.places)),
        wds.split_by_node,
        wds.split_by_worker,
        _opened,
        tariterators.tar_file_expander,
        tariterators.group_by_keys,
        *([] if decode is None else [wds.decode(decode)]),
        join,
    )


def _places(dataset: EmbeddingDataset, images: Images) -> dict[str, int]:
    """Location of each tar → the shard of `dataset` that was made of it."""
    reader = open_source(dataset, images)
    tars = reader if isinstance(reader, PartsReader) else None
    if reader is None or not all(isinstance(it, WebdatasetReader) for it in (tars.readers() if tars else [reader])):
        at = ", ".join(places_of(images) or sources_of(dataset)) or dataset.path
        raise InputError(f"{at}: no image shards (.tar) there", "Say where they are: images=")
    there = {shard.name: shard for shard in reader.shards(dataset.run.plan)}
    places = {}
    for number, rows in enumerate(dataset.shards):
        made_of = rows.manifest.source
        found = there.get(made_of.name)
        if found is None:
            raise DatasetError(f"{made_of.name}: not there, and {dataset.path} has rows of it", "Give all image shards")
        location = _location(reader, made_of.name)
        if found.bytes != made_of.bytes:
            raise DatasetError(f"{location}: has changed since it was encoded", f"Encode it again into {dataset.path}")
        places[location] = number
    return places


def _location(reader: Reader, name: str) -> str:
    """Where the tar of that name is."""
    if isinstance(reader, PartsReader):
        held = reader.held[name]
        return _location(held.place.reader, held.shard.name)
    assert isinstance(reader, WebdatasetReader)
    return locations.location_of(reader.data, name)


def _opened(shards: Iterable[Sample]) -> Iterator[Sample]:
    """webdataset's `url_opener`, for any fsspec url."""
    for shard in shards:
        with files.reading(shard["url"]) as stream:
            yield {**shard, "stream": stream}


class _Join:
    """A stage that adds to each sample what is stored of its row; picklable. places: see `_places`."""

    def __init__(self, dataset: EmbeddingDataset, places: dict[str, int], columns: tuple[str, ...]) -> None:
        self.places = places
        self._dataset = dataset
        self._columns = columns

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples that have a row, with it."""
        url, stored = "", _Stored(self._dataset, 0, self._columns)
        for sample in samples:
            if sample["__url__"] != url:
                url = sample["__url__"]
                stored = _Stored(self._dataset, self.places[url], self._columns)
            found = stored.of(sample["__key__"])
            if found is not None:
                yield {**sample, **found}


class _Stored:
    """What is stored of the samples of one shard, by key."""

    def __init__(self, dataset: EmbeddingDataset, number: int, columns: tuple[str, ...]) -> None:
        table = dataset.metadata(number, ("key", *columns))
        keys: list[str] = table.column("key").to_pylist()
        dotted = next((key for key in keys if "." in key.rpartition("/")[2]), None)
        if dotted is not None:
            raise DatasetError(
                f"{dataset.path}: has a row {dotted!r}: webdataset ends keys at the first dot, and would leave it out",
                "Load its images with embedpipe.ImageLoader",
            )
        self._place = {key: place for place, key in enumerate(keys)}
        self._columns = {name: table.column(name) for name in columns}
        self._start = dataset.shards[number].start
        sides = (side for side in ("image", "text") if getattr(dataset, side) is not None)
        self._sides = {f"{side}_embedding": dataset.array(number, side) for side in sides}

    def of(self, key: str) -> Sample | None:
        place = self._place.get(key)
        if place is None:
            return None
        embeddings = {name: np.array(rows[place]) for name, rows in self._sides.items()}
        metadata = {name: column[place].as_py() for name, column in self._columns.items()}
        return {"row": self._start + place, **embeddings, **metadata}
