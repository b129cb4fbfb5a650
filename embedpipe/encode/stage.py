"""One input shard → one embedding shard: read, decode ahead on threads, encode in batches, keep every reject."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
    """

    images: bool = True
    texts: bool = True
    batch_size: int = 64
    decode_threads: int = 2
    max_pixels: int = DEFAULT_MAX_PIXELS


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
    spent = {"decode": 0.0, "model": 0.0}
    gathered = _Shard()
    with ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode") as pool:
        arrivals = _in_order(pool, _decoder(encoder, config), reader.read(source, digest), ahead=2 * config.batch_size)
        try:
            for batch, rejects in _timed(_batches(arrivals, config.batch_size), spent, "decode"):
                gathered.rejects.extend(rejects)
                begun = time.perf_counter()
                _encode_images(batch, encoder, gathered)
                model_s = time.perf_counter() - begun
                spent["model"] += model_s
                listen(Progress(rows=len(batch), rejected=len(rejects), spent_s={"model": model_s}))
        finally:
            # After an exception nothing may wait for images nobody will use.
            pool.shutdown(wait=True, cancel_futures=True)
    begun = time.perf_counter()
    text = _encode_texts([row.sample.caption for row in gathered.rows], encoder, config) if config.texts else None
    spent["model"] += time.perf_counter() - begun
    rows_in = len(gathered.rows) + len(gathered.rejects)
    shard = _finish(number, source, gathered, text, encoder.card.dtype, columns)
    return EncodedShard(shard, digest.hexdigest(), rows_in, spent)


def _decoder(encoder: Encoder, config: StageConfig) -> Callable[[Sample | Reject], _Ready | Reject]:
    spec = encoder.card.preprocess

    def prepare(sample: Sample | Reject) -> _Ready | Reject:
        if isinstance(sample, Reject):
            return sample
        if sample.image is None:
            return _Ready(sample, None, None, None, None)
        sha256 = hashlib.sha256(sample.image).hexdigest()
        decoded = decode(sample.image, spec, config.max_pixels)
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


def _batches(arrivals: Iterable[_Ready | Reject], size: int) -> Iterator[tuple[list[_Ready], list[Reject]]]:
    """Batches of `size` rows and the rejects met on the way; the last one may be smaller, or hold rejects only."""
    batch: list[_Ready] = []
    rejects: list[Reject] = []
    for arrival in arrivals:
        if isinstance(arrival, Reject):
            rejects.append(arrival)
            continue
        batch.append(arrival)
        if len(batch) == size:
            yield batch, rejects
            batch, rejects = [], []
    if batch or rejects:
        yield batch, rejects


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


def _encode_images(batch: Sequence[_Ready], encoder: Encoder, gathered: _Shard) -> None:
    pixels = [row.pixels for row in batch if row.pixels is not None]
    if pixels:
        gathered.image.append(encoder.images(torch.stack(pixels)))
    gathered.rows.extend(_Ready(row.sample, row.sha256, row.width, row.height, None) for row in batch)


def _encode_texts(captions: Sequence[str | None], encoder: Encoder, config: StageConfig) -> np.ndarray:
    """float32 [n, dim]; each distinct caption is encoded once."""
    distinct = list(dict.fromkeys(caption or "" for caption in captions))
    if not distinct:
        return np.zeros((0, encoder.card.dim), np.float32)
    place = {caption: i for i, caption in enumerate(distinct)}
    size = config.batch_size
    parts = [encoder.texts(distinct[start : start + size]) for start in range(0, len(distinct), size)]
    return np.concatenate(parts)[[place[caption or ""] for caption in captions]]


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
