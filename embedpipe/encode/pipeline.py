"""A worker's pipeline: reading, decoding, encoding and writing run concurrently.

    reading thread → decoding threads → batching thread → this thread (the model) → writing thread

The queues between them are bounded, so memory does not grow with the data, and they are not drained at the end of a
shard, so the device does not wait for the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from ..execute import Task, TaskContext
from ..progress import Progress
from ..read import Reader
from .background_writer import Writer
from .base import EmbeddedTexts, Encoder
from .batching import BatchingConfig, PixelBatch, ShardEnd, batches_ahead
from .shard_buffer import ShardBuffer

# Batches on the device: one computing, one queued.
_BATCHES_ON_DEVICE = 2


def encode_shards(
    desk: TaskContext, reader: Reader, encoder: Encoder, config: BatchingConfig, finish: Callable[[ShardBuffer], None]
) -> None:
    """Encode input shards from the task context until there are no more; a background thread passes each to `finish`.

    Rows are in input order; they depend on the input and the options alone. Faults of single samples become rejects; an
    unreadable shard is refused.
    """
    compile_s = encoder.prepare(config.batch_size) if config.images else 0.0
    start_s = {"compile": compile_s} if compile_s else {}
    most_tokens = encoder.card.context_length if config.reject_cut_captions else None
    gathered: ShardBuffer | None = None
    with Writer(finish) as writer, batches_ahead(_tasks(desk), reader, encoder.card, config, writer.check) as batches:
        for waited_s, made in _timed(batches):
            if gathered is None or gathered.task is not made.task:
                spent_s = {"wait": 0.0, "model": 0.0, **start_s}
                gathered = ShardBuffer(made.task, spent_s=spent_s, most_tokens=most_tokens)
                start_s = {}
            gathered.spent_s["wait"] += waited_s
            if isinstance(made, PixelBatch):
                _encode_batch(made, encoder, gathered, desk)
            elif made.problem is not None:
                desk.refuse(made.task, made.problem)
            else:
                _end_shard(made, encoder, gathered, config, desk)
                writer.take(gathered)


def _tasks(desk: TaskContext) -> Iterator[Task]:
    while (task := desk.next()) is not None:
        yield task


_Item = TypeVar("_Item")


def _timed(items: Iterable[_Item]) -> Iterator[tuple[float, _Item]]:
    """Each item with the seconds spent waiting for it."""
    begun = time.perf_counter()
    for item in items:
        yield time.perf_counter() - begun, item
        begun = time.perf_counter()


def _encode_batch(batch: PixelBatch, encoder: Encoder, gathered: ShardBuffer, desk: TaskContext) -> None:
    gathered.rejects.extend(batch.rejects)
    gathered.rows.extend(batch.rows)
    begun = time.perf_counter()
    if batch.pixels is not None:
        gathered.image.append(encoder.images(batch.pixels))
        if len(gathered.image) > _BATCHES_ON_DEVICE:
            gathered.image[-1 - _BATCHES_ON_DEVICE].wait()
    model_s = time.perf_counter() - begun
    gathered.spent_s["model"] += model_s
    desk.tell(gathered.task, Progress(rows=len(batch.rows), rejected=len(batch.rejects), spent_s={"model": model_s}))


def _end_shard(
    end: ShardEnd, encoder: Encoder, gathered: ShardBuffer, config: BatchingConfig, desk: TaskContext
) -> None:
    gathered.sha256, gathered.accounts = end.sha256, end.accounts
    begun = time.perf_counter()
    if config.texts:
        _encode_texts(gathered, encoder, config.text_tokens)
    text_s = time.perf_counter() - begun
    gathered.spent_s["model"] += text_s
    desk.tell(gathered.task, Progress(spent_s={"model": text_s, "wait": gathered.spent_s["wait"]}))


def _encode_texts(gathered: ShardBuffer, encoder: Encoder, with_tokens: bool) -> None:
    """Embeddings and token states of the captions; each distinct caption is encoded once."""
    captions = [row.sample.caption or "" for row in gathered.rows]
    place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    rows = np.array([place[caption] for caption in captions], np.int64)
    if not place:
        none = np.zeros(0, np.int32) if encoder.counts_cut_tokens else None
        gathered.text = EmbeddedTexts(np.zeros((0, encoder.card.dim), np.float32), np.zeros(0, np.float32), none)
    elif with_tokens:
        made = encoder.text_states(list(place))
        gathered.text, gathered.text_tokens = made.embeddings.take(rows), made.tokens.take(rows)
    else:
        gathered.text = encoder.texts(list(place)).take(rows)
