"""A worker's pipeline: reading, decoding, encoding and writing run concurrently.

    reading thread → decoding threads → batching thread → this thread (the model) → writing thread

The queues between them are bounded, so memory does not grow with the data, and they are not drained at the end of a
shard, so the device does not wait for the disk. Captions are encoded between the images of the next shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..execute import Task, TaskContext
from ..progress import Progress
from ..read import Reader
from .background_writer import Writer
from .base import Encoder
from .batching import BatchingConfig, PixelBatch, batches_ahead
from .shard_buffer import ShardBuffer
from .texts_behind import TextsBehind

# Batches on the device: one computing, one queued.
_BATCHES_ON_DEVICE = 2


def encode_shards(
    desk: TaskContext, reader: Reader, encoder: Encoder, config: BatchingConfig, finish: Callable[[ShardBuffer], None]
) -> None:
    """Encode input shards from the task context until there are no more; a background thread passes each to `finish`.

    Rows are in input order; they depend on the input and the options alone. Faults of single samples become rejects; an
    unreadable shard is refused.
    """
    compile_s = encoder.prepare(config.samples_at_once) if config.images else 0.0
    start_s = {"compile": compile_s} if compile_s else {}
    most_tokens = encoder.card.context_length if config.reject_cut_captions else None
    gathered: ShardBuffer | None = None
    with Writer(finish) as writer, TextsBehind(encoder, config.text_tokens, desk, writer.take) as texts:

        def look() -> bool:
            writer.check()
            return texts.look()

        with batches_ahead(_tasks(desk), reader, encoder.card, config, look) as batches:
            for waited_s, made in _timed(batches, texts):
                if gathered is None or gathered.task is not made.task:
                    spent_s = {"wait": 0.0, "model": 0.0, **start_s}
                    gathered = ShardBuffer(made.task, spent_s=spent_s, most_tokens=most_tokens)
                    start_s = {}
                gathered.spent_s["wait"] += waited_s
                if isinstance(made, PixelBatch):
                    _encode_batch(made, encoder, gathered, desk)
                    texts.keep_pace(len(made.rows))
                elif made.problem is not None:
                    desk.refuse(made.task, made.problem)
                else:
                    gathered.sha256, gathered.accounts = made.sha256, made.accounts
                    if config.texts:
                        texts.take(gathered)
                    else:
                        desk.tell(gathered.task, Progress(spent_s={"wait": gathered.spent_s["wait"]}))
                        writer.take(gathered)
            texts.drain()


def _tasks(desk: TaskContext) -> Iterator[Task]:
    while (task := desk.next()) is not None:
        yield task


_Item = TypeVar("_Item")


def _timed(items: Iterable[_Item], texts: TextsBehind) -> Iterator[tuple[float, _Item]]:
    """Each item with the seconds spent waiting for it, without those in which captions were encoded meanwhile."""
    begun, elsewhere = time.perf_counter(), texts.spent_s
    for item in items:
        yield time.perf_counter() - begun - (texts.spent_s - elsewhere), item
        begun, elsewhere = time.perf_counter(), texts.spent_s


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
