"""One input shard → one embedding shard: read, decode ahead on threads, encode in batches, keep every reject."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from ..columns import EXTRA, FIXED, optional_string, split_row, storable
from ..images.decode import DEFAULT_MAX_PIXELS, Undecodable, decode
from ..progress import Listener, Progress
from ..read import Reader
from ..types import EmbeddingShard, Reject, Sample, SourceShard
from .base import Encoder


@dataclass(frozen=True, slots=True)
class StageConfig:
    """How one worker encodes. images/texts: which sides to encode. batch_size: samples per pass through a tower.

    decode_threads: threads that decode and resize ahead of the model. max_pixels: larger images are rejected unread.
    pin_memory: put batches where a CUDA device can fetch them without stopping.
    """

    images: bool = True
    texts: bool = True
    batch_size: int = 64
    decode_threads: int = 2
    max_pixels: int = DEFAULT_MAX_PIXELS
    pin_memory: bool = False


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """An embedding shard in memory, the sha256 of the input shard it came from, and where the time went (s)."""

    shard: EmbeddingShard
    source_sha256: str
    rows_in: int
    spent_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A sample that may be encoded; its image bytes are gone, its pixels there (until they are encoded)."""

    sample: Sample
    sha256: str | None
    width: int | None
    height: int | None
    pixels: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows for one pass through the image tower, their pixels (uint8 [b, 3, h, w]) and the rejects met before them."""

    rows: tuple[_Ready, ...]
    rejects: tuple[Reject, ...]
    pixels: torch.Tensor | None


@dataclass(slots=True)
class _Shard:
    """What has been gathered of a shard so far."""

    rows: list[_Ready] = field(default_factory=list)
    image: list[np.ndarray] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def encode_shard(
    number: int,
    source: SourceShard,
    reader: Reader,
    encoder: Encoder,
    config: StageConfig,
    columns: Mapping[str, str],
    listen: Listener,
) -> EncodedShard:
    """Encode one input shard. Rows come out in input order; bytes depend on the input and the options alone.

    Raises InputError when the shard cannot be read at all; what is wrong with single samples becomes rejects.
    """
    digest = hashlib.sha256()
    spent = dict.fromkeys(("wait", "model"), 0.0)
    gathered = _Shard()
    with ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode") as pool:
        arrivals = _in_order(pool, _decoder(encoder, config), reader.read(source, digest), ahead=config.batch_size)
        batches = _prefetched(_batches(arrivals, config.batch_size, config.pin_memory), depth=1)
        with contextlib.closing(batches):
            for batch in _timed(batches, spent, "wait"):
                gathered.rejects.extend(batch.rejects)
                gathered.rows.extend(batch.rows)
                begun = time.perf_counter()
                if batch.pixels is not None:
                    gathered.image.append(encoder.images(batch.pixels))
                model_s = time.perf_counter() - begun
                spent["model"] += model_s
                listen(Progress(rows=len(batch.rows), rejected=len(batch.rejects), spent_s={"model": model_s}))
    begun = time.perf_counter()
    text = _encode_texts([row.sample.caption for row in gathered.rows], encoder) if config.texts else None
    text_s = time.perf_counter() - begun
    spent["model"] += text_s
    listen(Progress(spent_s={"model": text_s, "wait": spent["wait"]}))
    rows_in = len(gathered.rows) + len(gathered.rejects)
    shard = _finish(number, source, gathered, text, encoder.card.dtype, columns)
    return EncodedShard(shard, digest.hexdigest(), rows_in, spent)


def _decoder(encoder: Encoder, config: StageConfig) -> Callable[[Sample | Reject], _Ready | Reject]:
    spec, how = encoder.card.preprocess, encoder.card.decode

    def prepare(sample: Sample | Reject) -> _Ready | Reject:
        if isinstance(sample, Reject):
            return sample
        if sample.image is None:
            return _Ready(sample, None, None, None, None)
        sha256 = hashlib.sha256(sample.image).hexdigest()
        decoded = decode(sample.image, spec, config.max_pixels, how)
        if isinstance(decoded, Undecodable):
            return Reject(sample.key, sample.index, "decode", decoded.error_class, decoded.message)
        bare = Sample(sample.key, sample.index, None, sample.caption, sample.metadata)
        return _Ready(bare, sha256, decoded.width, decoded.height, decoded.pixels)

    return prepare


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """`map` on a pool, in order, with at most `ahead` items under way: memory does not grow with the input."""
    pending: deque[Future[_Out]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(arrivals: Iterable[_Ready | Reject], size: int, pin_memory: bool) -> Iterator[_Batch]:
    """Batches of `size` rows and the rejects met on the way; the last one may be smaller, or hold rejects only."""
    ready: list[_Ready] = []
    rejects: list[Reject] = []
    for arrival in arrivals:
        if isinstance(arrival, Reject):
            rejects.append(arrival)
            continue
        ready.append(arrival)
        if len(ready) == size:
            yield _batch(ready, rejects, pin_memory)
            ready, rejects = [], []
    if ready or rejects:
        yield _batch(ready, rejects, pin_memory)


def _batch(ready: Sequence[_Ready], rejects: Sequence[Reject], pin_memory: bool) -> _Batch:
    pictures = [row.pixels for row in ready if row.pixels is not None]
    pixels = torch.stack(pictures) if pictures else None
    if pixels is not None and pin_memory:
        pixels = pixels.pin_memory()
    return _Batch(tuple(replace(row, pixels=None) for row in ready), tuple(rejects), pixels)


class _Ended:
    """The last thing in a prefetch queue: the source is exhausted, or raised `problem`."""

    def __init__(self, problem: BaseException | None) -> None:
        self.problem = problem


def _prefetched(items: Iterator[_Out], depth: int) -> Generator[_Out, None, None]:
    """`items`, made ahead by a thread, at most `depth` of them waiting. Closing it ends the thread."""
    waiting: queue.Queue[_Out | _Ended] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: _Out | _Ended) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def make() -> None:
        problem: BaseException | None = None
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
        except BaseException as raised:  # carried to the thread that asked
            problem = raised
        put(_Ended(problem))

    maker = threading.Thread(target=make, name="batches", daemon=True)
    maker.start()
    try:
        while not isinstance(item := waiting.get(), _Ended):
            yield item
        if item.problem is not None:
            raise item.problem
    finally:
        stopped.set()
        maker.join()


def _timed(items: Iterator[_Out], spent: dict[str, float], name: str) -> Iterator[_Out]:
    """Pass `items` on, adding the time spent waiting for them to `spent[name]`."""
    while True:
        begun = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            spent[name] += time.perf_counter() - begun
        yield item


def _encode_texts(captions: Sequence[str | None], encoder: Encoder) -> np.ndarray:
    """float32 [n, dim]; each distinct caption is encoded once."""
    distinct = list(dict.fromkeys(caption or "" for caption in captions))
    if not distinct:
        return np.zeros((0, encoder.card.dim), np.float32)
    place = {caption: i for i, caption in enumerate(distinct)}
    made: np.ndarray = encoder.texts(distinct)[[place[caption or ""] for caption in captions]]
    return made


def _finish(
    number: int,
    source: SourceShard,
    gathered: _Shard,
    text: np.ndarray | None,
    dtype: str,
    columns: Mapping[str, str],
) -> EmbeddingShard:
    """Put rows and arrays together; rows whose embedding is not finite become rejects."""
    rows = gathered.rows
    image = np.concatenate(gathered.image) if gathered.image else None
    finite = np.ones(len(rows), bool)
    for array in (image, text):
        if array is not None:
            finite &= np.isfinite(array).all(axis=1)
    rejects = [*gathered.rejects, *(_nonfinite(rows[i]) for i in np.flatnonzero(~finite))]
    rows = [row for row, kept in zip(rows, finite, strict=True) if kept]
    image = image[finite] if image is not None else None
    text = text[finite] if text is not None else None
    similarity: list[float | None] = [None] * len(rows)
    if image is not None and text is not None:
        similarity = np.einsum("nd,nd->n", image, text).tolist()
    return EmbeddingShard(
        number=number,
        image=image.astype(dtype) if image is not None else None,
        text=text.astype(dtype) if text is not None else None,
        metadata=_metadata(rows, source, similarity, columns),
        rejects=tuple(rejects),
    )


def _nonfinite(row: _Ready) -> Reject:
    return Reject(row.sample.key, row.sample.index, "encode", "embedding_nonfinite", "the model gave NaN or infinity")


def _metadata(
    rows: Sequence[_Ready], source: SourceShard, similarity: list[float | None], columns: Mapping[str, str]
) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in (*FIXED, *columns, EXTRA)}
    for row, alike in zip(rows, similarity, strict=True):
        sample = row.sample
        fixed = {
            "key": sample.key,
            "image_path": sample.key,
            "caption": storable(sample.caption) if sample.caption is not None else None,
            "url": optional_string(sample.metadata.get("url")),
            "width": row.width,
            "height": row.height,
            "sha256": row.sha256,
            "similarity": alike,
            "src_shard": source.name,
            "src_index": sample.index,
        }
        passed = split_row(sample.metadata, columns, fixed)
        for name, value in {**fixed, **passed}.items():
            table[name].append(storable(value) if isinstance(value, str) else value)
    return table
