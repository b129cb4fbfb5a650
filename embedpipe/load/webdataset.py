"""Image shards with the embeddings of their images, as a pipeline of webdataset."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import webdataset as wds
from webdataset import tariterators

from .. import files
from ..errors import DatasetError, InputError
from ..plural import plural
from ..read import Reader, locations
from ..read.webdataset import WebdatasetReader
from ..renamed import renamed_keyword
from .dataset import EmbeddingDataset
from .images.parts import PartsReader
from .images.source import Images, open_source, places_of, sources_of

Sample = dict[str, Any]

_STORED = "__stored__"  # webdataset decodes no field with such a name
_OWN = ("key", "sha256")


@renamed_keyword(data="images")
def webdataset_pipeline(
    dataset: EmbeddingDataset, images: Images = None, columns: Sequence[str] = (), decode: str | None = None
) -> wds.DataPipeline:
    """Samples of image shards ("jpg", "txt", "json" …) with "row", "image_embedding" and "text_embedding" [dim].

    Each row comes once, with the image that was encoded, in whatever rank and worker reads its shard; samples that
    became no row are left out. Go on with `.compose(wds.shuffle(1000), wds.map(…), wds.batched(64))`.

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
        join,
        *([] if decode is None else [wds.decode(decode)]),
        _beside,
    )


def _places(dataset: EmbeddingDataset, images: Images) -> dict[str, list[int]]:
    """Location of each tar → the shards of `dataset` that were made of it: several, if data sets were merged."""
    reader = open_source(dataset, images)
    tars = reader if isinstance(reader, PartsReader) else None
    if reader is None or not all(isinstance(it, WebdatasetReader) for it in (tars.readers() if tars else [reader])):
        at = ", ".join(places_of(images) or sources_of(dataset)) or dataset.path
        raise InputError(f"{at}: no image shards (.tar) there", "Say where they are: images=")
    there = {shard.name: shard for shard in reader.shards(dataset.run.plan)}
    places: dict[str, list[int]] = {}
    for number, rows in enumerate(dataset.shards):
        made_of = rows.manifest.source
        found = there.get(made_of.name)
        if found is None:
            raise DatasetError(f"{made_of.name}: not there, and {dataset.path} has rows of it", "Give all image shards")
        location = _location(reader, made_of.name)
        if found.bytes != made_of.bytes:
            raise DatasetError(f"{location}: has changed since it was encoded", f"Encode it again into {dataset.path}")
        places.setdefault(location, []).append(number)
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
    """A stage that adds to each sample what is stored of its row, as `_STORED`; picklable. places: see `_places`."""

    def __init__(self, dataset: EmbeddingDataset, places: dict[str, list[int]], columns: tuple[str, ...]) -> None:
        self.places = places
        self._dataset = dataset
        self._columns = columns

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples that have a row, once for each. Raises DatasetError if a tar ends and not all its rows came."""
        for url, of_tar in itertools.groupby(samples, lambda sample: str(sample["__url__"])):
            shards = [_Stored(self._dataset, number, self._columns) for number in self.places[url]]
            for sample in of_tar:
                for shard in shards:
                    found = shard.of(sample)
                    if found is not None:
                        yield {**sample, _STORED: found}
            if left := [key for shard in shards for key in shard.left]:
                raise DatasetError(
                    f"{url}: {plural(len(left), 'row')} of {self._dataset.path} without their sample in it, the first"
                    f" is {left[0]!r}: it has changed since it was encoded, or webdataset passes over a name",
                    "Load its images with embedpipe.ImageLoader",
                )


def _beside(samples: Iterable[Sample]) -> Iterator[Sample]:
    """What `_Join` added, beside the other fields."""
    for sample in samples:
        stored = sample.pop(_STORED)
        yield {**sample, **stored}


class _Stored:
    """What is stored of the samples of one shard, by key. left: place of each row that has not come, by key."""

    def __init__(self, dataset: EmbeddingDataset, number: int, columns: tuple[str, ...]) -> None:
        table = dataset.metadata(number, ("key", "sha256", *(name for name in columns if name not in _OWN)))
        keys: list[str] = table.column("key").to_pylist()
        dotted = next((key for key in keys if "." in key.rpartition("/")[2]), None)
        if dotted is not None:
            raise DatasetError(
                f"{dataset.path}: has a row {dotted!r}: webdataset ends keys at the first dot, and would leave it out",
                "Load its images with embedpipe.ImageLoader",
            )
        self.left = {key: place for place, key in enumerate(keys)}
        self._sha256: list[str | None] = table.column("sha256").to_pylist()
        self._columns = {name: table.column(name) for name in columns}
        self._start = dataset.shards[number].start
        sides = (side for side in ("image", "text") if getattr(dataset, side) is not None)
        self._sides = {f"{side}_embedding": dataset.array(number, side) for side in sides}

    def of(self, sample: Sample) -> Sample | None:
        """What is stored of a sample as it is in the tar; None if it, or one before it with its key, became no row."""
        place = self.left.get(sample["__key__"])
        if place is None or not _holds(sample, self._sha256[place]):
            return None
        del self.left[sample["__key__"]]
        embeddings = {name: np.array(rows[place]) for name, rows in self._sides.items()}
        metadata = {name: column[place].as_py() for name, column in self._columns.items()}
        return {"row": self._start + place, **embeddings, **metadata}


def _holds(sample: Sample, sha256: str | None) -> bool:
    """Whether one of its members has this checksum; true if there is none, as of captions alone."""
    members = (member for member in sample.values() if isinstance(member, bytes))
    return sha256 is None or any(hashlib.sha256(member).hexdigest() == sha256 for member in members)
