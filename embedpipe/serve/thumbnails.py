"""Thumbnails of rows, from the image shards where they still are, kept in memory up to a bound."""

from __future__ import annotations

import contextlib
import io
import threading
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ..errors import EmbedpipeError
from ..images.thumbnail import small_picture
from ..load import EmbeddingDataset
from ..load.images.fetched import FetchedImages
from ..load.images.source import Images, open_source
from ..load.lru_cache import ByteLRUCache
from ..read.base import NoDigest, Reader, Selective
from ..types import Reject, Sample, SourceShard

SIDES_PX = (128, 256, 512, 1024)
_QUALITY = 82
_AT_ONCE = 4  # passes over image shards


class Thumbnails:
    """The pictures of a data set's rows as small JPEGs. `there`: whether there is a place to read them from."""

    def __init__(self, dataset: EmbeddingDataset, images: Images, most_bytes: int) -> None:
        self._dataset = dataset
        self._reader = open_source(dataset, images)
        self._fetched = FetchedImages(self._reader) if self._reader is not None else None
        self._plan = {shard.name: shard for shard in dataset.run.plan}
        self._held = ByteLRUCache(most_bytes)
        self._passes = threading.BoundedSemaphore(_AT_ONCE)
        self._queued = threading.Lock()
        self._wanted: dict[str, dict[str, list[_Wish]]] = defaultdict(dict)
        self._turns: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @property
    def there(self) -> bool:
        """Whether the image shards were found."""
        return self._reader is not None

    def jpeg(self, row: int, side_px: int) -> bytes | None:
        """A JPEG of at most `side_px` a side, one of SIDES_PX; None if there is no picture, or none that decodes."""

        def make() -> np.ndarray:
            data = self._stored(row)
            small = small_picture(data, side_px) if data is not None else None
            if small is None:
                return np.empty(0, np.uint8)
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=_QUALITY)
            return np.frombuffer(stream.getvalue(), np.uint8)

        found: np.ndarray = self._held.get((row, side_px), make)
        return found.tobytes() or None

    def _stored(self, row: int) -> bytes | None:
        """The image file of a row. Rows of one shard that wait for each other are read in one pass over it."""
        if self._reader is None or self._fetched is None:
            return None
        (about,) = self._dataset.rows([row], ("src_shard", "key"))
        name, key = str(about["src_shard"]), str(about["key"])
        if name not in self._plan:
            return None
        if (data := self._fetched.find(name, key)) is not None:
            return data
        wish = _Wish()
        with self._queued:
            self._wanted[name].setdefault(key, []).append(wish)
        with self._turns[name]:
            if not wish.answered:
                with self._queued:
                    wishes = self._wanted.pop(name, {})
                try:
                    with self._passes:
                        self._read(self._reader, self._plan[name], wishes)
                finally:
                    for waiting in wishes.values():
                        for each in waiting:
                            each.answered = True
        return wish.data

    def _read(self, reader: Reader, shard: SourceShard, wishes: dict[str, list[_Wish]]) -> None:
        left = set(wishes)
        with contextlib.suppress(EmbedpipeError):  # the shard is gone, or damaged: no picture
            for sample in _samples(reader, shard, left):
                if isinstance(sample, Sample) and sample.key in left and sample.image is not None:
                    left.remove(sample.key)
                    for wish in wishes[sample.key]:
                        wish.data = sample.image
                if not left:
                    return


class _Wish:
    """What a thread waits for."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.answered = False


def _samples(reader: Reader, shard: SourceShard, keys: set[str]) -> Iterator[Sample | Reject]:
    if isinstance(reader, Selective):
        return reader.read_some(shard, keys)
    return reader.read(shard, NoDigest())
