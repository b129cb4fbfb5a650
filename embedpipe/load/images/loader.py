"""Training images with their embeddings: streamed from image shards, decoded on threads, in a reproducible order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...clip_model.encoder_card import PreprocessSpec
from ...errors import DatasetError, InputError
from ...images.guarded import guarded_decode
from ...images.open import DEFAULT_MAX_PIXELS
from ...images.undecodable import Undecodable
from ...read.base import NoDigest, Selective
from ...types import EmbeddingBatch, Sample
from ..dataset import EmbeddingDataset
from ..prefetch import prefetch
from ..shuffle import Window
from .join import Join, JoinedShard
from .order import StreamedOrder

WINDOW_ROWS = 4096
_BATCHES_AHEAD = 2

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Image preprocessing. size: height and width, px: the shorter side is resized to it, then the centre cropped.

    threads: for decoding. max_pixels: no larger image is decoded. window_rows: the size of the shuffle window of
    encoded images, two of which are in memory; it affects the order.
    """

    size: int
    threads: int = 4
    max_pixels: int = DEFAULT_MAX_PIXELS
    window_rows: int = WINDOW_ROWS

    @property
    def preprocess(self) -> PreprocessSpec:
        """For `images.decode`."""
        return PreprocessSpec((self.size, self.size), (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", 0)


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images, uint8 [b, 3, size, size], and their stored embeddings: row i of both is the same sample."""

    pixels: np.ndarray
    embeddings: EmbeddingBatch


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An image as stored, and its row."""

    row: int
    key: str
    shard: str
    data: bytes


class ImageLoader:
    """Batches of images and embeddings for rank r of w, in an order that is a function of (seed, step) alone.

    `loader.batches(step)` → this rank's share of the global batches `step`, `step + 1`, …, endlessly. The stream of
    global batches is the same for every `world`. Every rank decodes only its own images; it reads only those from tars
    on a local disk, but all from other sources.

    tokens: also return the states of the captions' tokens. Raises DatasetError for an image that has changed since the
    join, or cannot be decoded, naming its shard and key.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        join: Join,
        options: ImageOptions,
        batch_size: int,
        seed: int,
        *,
        tokens: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < world or not 0 <= rank < world:
            raise InputError(f"rank {rank} of {world} and a global batch of {batch_size} rows")
        self._dataset = dataset
        self._join = join
        self._options = options
        self._batch_size = batch_size
        self._share = rank * batch_size // world, (rank + 1) * batch_size // world
        self._tokens = dataset.require_text_tokens() if tokens else None
        sizes = [len(shard.rows) for shard in join.shards]
        self._bounds = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        if not self._bounds[-1]:
            raise InputError(f"{dataset.path}: no rows to draw from", "Give more image shards")
        self._row_at = np.concatenate([shard.rows for shard in join.shards])
        self._order = StreamedOrder(self._bounds, seed, options.window_rows)

    def __len__(self) -> int:
        """The number of rows per epoch."""
        return self._order.total

    def batches(self, step: int = 0) -> Iterator[ImageBatch]:
        """This rank's rows of the global batches from `step` on."""
        return prefetch(self._batches(step * self._batch_size), _BATCHES_AHEAD)

    def places(self, step: int = 0) -> Iterator[np.ndarray]:
        """The same rows without their images: for each batch, int64, their positions in the order of `all`."""
        position = step * self._batch_size
        ours = (self._ours(window, position) for window in self._order.windows(position))
        for batch in self._in_batches(found[order].tolist() for found, order in ours):
            yield np.array(batch, np.int64)

    def embeddings(self, places: np.ndarray) -> EmbeddingBatch:
        """The stored embeddings of the rows at these positions."""
        return self._stored(self._row_at[places])

    def rows(self, step: int) -> np.ndarray:
        """int64 [batch_size]: the rows of the whole global batch `step`, without reading an image."""
        first, found = step * self._batch_size, np.full(self._batch_size, -1, np.int64)
        for window in self._order.windows(first):
            inside = window.positions < first + self._batch_size
            found[window.positions[inside] - first] = self._row_at[window.places[inside]]
            if (found >= 0).all():
                break
        return found

    def content(self) -> str:
        """A checksum of the images, and of their order in `all`."""
        digest = hashlib.sha256()
        for shard in self._join.shards:
            digest.update(shard.rows.tobytes())
            digest.update(repr((shard.shard.name, shard.keys, shard.sha256)).encode())
        return digest.hexdigest()

    def all(self) -> Iterator[ImageBatch]:
        """All rows once, in storage order, in batches (the last may be smaller)."""
        everything = np.arange(self._order.total)
        with _Shards(self._join, selective=False) as shards, ThreadPoolExecutor(self._options.threads) as pool:
            for start in range(0, len(everything), self._batch_size):
                places = everything[start : start + self._batch_size]
                shards.keep(set(self._owners(places).tolist()))
                yield self._decoded(self._read(shards, places), pool)

    def _batches(self, position: int) -> Generator[ImageBatch, None, None]:
        with ThreadPoolExecutor(self._options.threads, thread_name_prefix="decode") as pool:
            for batch in self._in_batches(prefetch(self._windows(position), 1)):
                yield self._decoded(batch, pool)

    def _in_batches(self, windows: Iterable[list[_Item]]) -> Iterator[list[_Item]]:
        """This rank's share of each batch, from its rows of each window."""
        size = self._share[1] - self._share[0]
        waiting: list[_Item] = []
        for window in windows:
            waiting += window
            while len(waiting) >= size:
                batch, waiting = waiting[:size], waiting[size:]
                yield batch

    def _windows(self, position: int) -> Generator[list[_Encoded], None, None]:
        """This rank's images of each window, in the order of the stream."""
        with _Shards(self._join) as shards:
            for window, following in itertools.pairwise(self._order.windows(position)):
                # Another rank's shards, too: the next window may continue in them.
                shards.keep(set(self._owners(window.places).tolist()))
                ours, order = self._ours(window, position)
                # A reader is slightly ahead of its output.
                shards.want(self._keys(ours), self._keys(self._ours(following, position)[0]))
                found = self._read(shards, ours)
                yield [found[place] for place in order]

    def _ours(self, window: Window, position: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's positions in a window, ascending, and their order in the stream."""
        inside = (window.positions - position) % self._batch_size
        mine = np.flatnonzero((inside >= self._share[0]) & (inside < self._share[1]))
        return window.places[mine], np.argsort(window.positions[mine])

    def _keys(self, places: np.ndarray) -> Iterator[tuple[int, str]]:
        """(shard number, key) of each position."""
        for owner, place in zip(self._owners(places).tolist(), places.tolist(), strict=True):
            yield owner, self._join.shards[owner].keys[place - int(self._bounds[owner])]

    def _read(self, shards: _Shards, places: np.ndarray) -> list[_Encoded]:
        """The images at those positions (ascending), as stored."""
        return [
            shards.image(int(owner), int(place - self._bounds[owner]))
            for owner, place in zip(self._owners(places), places, strict=True)
        ]

    def _owners(self, places: np.ndarray) -> np.ndarray:
        """The shard number of each position."""
        owners: np.ndarray = np.searchsorted(self._bounds, places, side="right") - 1
        return owners

    def _decoded(self, batch: Sequence[_Encoded], pool: ThreadPoolExecutor) -> ImageBatch:
        pixels = np.stack(list(pool.map(self._pixels, batch)))
        return ImageBatch(pixels, self._stored(np.array([image.row for image in batch], np.int64)))

    def _stored(self, rows: np.ndarray) -> EmbeddingBatch:
        states, mask = self._tokens.batch(rows) if self._tokens is not None else (None, None)
        return EmbeddingBatch(
            image=self._dataset.require("image")[rows].astype(np.float32),
            text=None,
            text_tokens=None if states is None else states.astype(np.float32),
            text_mask=mask,
            rows=rows,
        )

    def _pixels(self, image: _Encoded) -> np.ndarray:
        decoded = guarded_decode(
            image.data, self._options.preprocess, self._dataset.card.rules, self._options.max_pixels
        )
        if isinstance(decoded, Undecodable):
            raise DatasetError(
                f"{image.shard}: the image of {image.key} (row {image.row} of {self._dataset.path}) does not decode: "
                f"{decoded.message}",
                "Leave that row out with `embedpipe filter`, or raise `max_pixels` if it is too large",
            )
        found: np.ndarray = decoded.pixels.numpy()
        return found


class _Shards:
    """Open shards, each read sequentially by its own iterator; seeking backwards restarts it."""

    def __init__(self, join: Join, selective: bool = True) -> None:
        """selective: read only the wanted samples, if the reader can."""
        self._join = join
        self._selective = selective and isinstance(join.reader, Selective)
        self._open: dict[int, _OpenShard] = {}
        self._wanted: dict[int, set[str]] = {}

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(set())

    def keep(self, wanted: set[int]) -> None:
        """Close all shards except these."""
        for number in self._open.keys() - wanted:
            self._open.pop(number).close()

    def want(self, *keys: Iterable[tuple[int, str]]) -> None:
        """Set the samples, as (shard number, key), that will be requested until the next call."""
        for some in self._wanted.values():
            some.clear()  # open shards refer to them
        for number, key in itertools.chain(*keys):
            self._wanted.setdefault(number, set()).add(key)

    def image(self, number: int, place: int) -> _Encoded:
        """The image at a position of a shard. Raises DatasetError if it no longer exists."""
        shard = self._open.get(number)
        found = None if shard is None or place < shard.next_place else shard.image(place)
        if found is None:  # the iterator is past it, or skipped its bytes before they were wanted
            found = self._opened(number).image(place)
        if found is None:
            joined = self._join.shards[number]
            raise DatasetError(
                f"{joined.shard.name}: the image of {joined.keys[place]} is no longer there, or another one: the shard "
                "has changed since the training began",
                "Run the same command again",
            )
        return found

    def _opened(self, number: int) -> _OpenShard:
        """Open a shard at its start."""
        if number in self._open:
            self._open.pop(number).close()
        wanted = self._wanted.setdefault(number, set()) if self._selective else None
        self._open[number] = _OpenShard(self._join, self._join.shards[number], wanted)
        return self._open[number]


class _OpenShard:
    """One shard, read up to `next_place` of its joined rows."""

    def __init__(self, join: Join, shard: JoinedShard, wanted: set[str] | None) -> None:
        """wanted: keys of the samples to read; None for all."""
        self._shard = shard
        reader = join.reader
        if wanted is not None and isinstance(reader, Selective):
            self._samples = reader.read_some(shard.shard, wanted)
        else:
            self._samples = reader.read(shard.shard, NoDigest())
        self.next_place = 0

    def close(self) -> None:
        """Close its file."""
        close = getattr(self._samples, "close", None)
        if close is not None:
            close()

    def image(self, place: int) -> _Encoded | None:
        """Advance to the image at `place`; None if it is missing or differs."""
        shard, key, sha256 = self._shard, self._shard.keys[place], self._shard.sha256[place]
        self.next_place = place + 1
        for sample in self._samples:
            if not isinstance(sample, Sample) or sample.key != key or sample.image is None:
                continue
            if sha256 and hashlib.sha256(sample.image).hexdigest() != sha256:
                return None
            return _Encoded(int(shard.rows[place]), key, shard.shard.name, sample.image)
        return None
