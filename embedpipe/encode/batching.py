"""Input shards → batches of pixels, read and decoded on threads ahead of the model."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from ..accounts import Accounts, Ledger
from ..clip_model.encoder_card import EncoderCard
from ..errors import InputError
from ..execute import Task
from ..images.cost import DEFAULT_MAX_SECONDS
from ..images.guarded import guarded_decode
from ..images.open import DEFAULT_MAX_PIXELS
from ..images.undecodable import Undecodable
from ..read import Reader
from ..types import Reject, Sample

if TYPE_CHECKING:
    import torch

_BATCH_ON_CPU, _BATCH_ON_GPU = 64, 512
_BATCHES_AHEAD = 2
_IMAGES_AHEAD_OF_GPU = 1024  # a tenth of a second of a fast one
_LOOK_EVERY_S = 0.1
_CLOSING_MAY_TAKE_S = 2.0
_BYTES_AHEAD = 1 << 28  # of encoded images that were read and not decoded yet


@dataclass(frozen=True, slots=True)
class BatchingConfig:
    """How one worker encodes. images/texts: which modalities to encode. batch_size: samples per pass through a tower;
    None is 512 where memory is pinned for a GPU, else 64.

    text_tokens: also store the states of the captions' tokens. reject_cut_captions: reject samples whose caption is
    longer than the model's context.

    decode_threads: threads that decode and resize ahead of the model; None: the worker's number of compute threads.
    max_pixels: larger images are rejected without decoding. max_sample_seconds: of processor time; images that take
    longer to decode are rejected. pin_memory: page-locked batches, for asynchronous copies to a CUDA device.
    """

    images: bool = True
    texts: bool = True
    batch_size: int | None = None
    decode_threads: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_sample_seconds: float = DEFAULT_MAX_SECONDS
    pin_memory: bool = False
    text_tokens: bool = False
    reject_cut_captions: bool = False

    @property
    def samples_at_once(self) -> int:
        """Samples per pass."""
        return self.batch_size or (_BATCH_ON_GPU if self.pin_memory else _BATCH_ON_CPU)

    @property
    def batches_ahead(self) -> int:
        """Batches that are ready for the model: on a GPU as many as have so many images."""
        wanted = -(-_IMAGES_AHEAD_OF_GPU // self.samples_at_once) if self.pin_memory else 0
        return max(wanted, _BATCHES_AHEAD)


@dataclass(frozen=True, slots=True)
class Row:
    """A sample to encode: its image bytes are dropped, its pixels kept until encoded."""

    sample: Sample
    sha256: str | None
    width: int | None
    height: int | None
    pixels: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """Rows of one shard for one pass through the image tower, and the rejects among them.

    pixels: uint8 [b, 3, h, w], None if there are none to encode.
    """

    task: Task
    rows: tuple[Row, ...]
    rejects: tuple[Reject, ...]
    pixels: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """Marks the end of a shard's batches.

    sha256: of the input shard. accounts: of all that is in it. problem: why it could not be read completely.
    """

    task: Task
    sha256: str
    accounts: Accounts
    problem: InputError | None = None


@contextlib.contextmanager
def batches_ahead(
    tasks: Iterator[Task], reader: Reader, card: EncoderCard, config: BatchingConfig, look: Callable[[], bool]
) -> Iterator[Iterable[PixelBatch | ShardEnd]]:
    """Batches of one shard after another, each followed by a `ShardEnd`, prefetched by threads.

    Prefetching continues across shards: while the captions of one are encoded and its rows are written, the next one is
    read. Some batches are queued, and one more is in preparation. `look` is called while the queue is empty, again at
    once if it says that it has more to do, and may raise.
    """
    stopped = threading.Event()
    threads, size = config.decode_threads or 1, config.samples_at_once
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    prepare = _decoder(card, config, stopped)
    begun = _submitted(pool, prepare, _read(tasks, reader), _Room(_BYTES_AHEAD, stopped))
    # Reading has its own thread: waiting for the next task must not delay batches of the last one.
    decoding = _Ahead(begun, max(size, 2 * threads), stopped, _nothing)
    arrivals = (future.result() for future in decoding)
    made = _Ahead(_batches(arrivals, size, config.pin_memory), config.batches_ahead, stopped, look)
    try:
        yield made
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
        decoding.join()
        made.join()


def _nothing() -> bool:
    return False


_Arrival = tuple[Task, Sample | Reject | ShardEnd]
_Prepared = tuple[Task, Row | Reject | ShardEnd]


def _read(tasks: Iterator[Task], reader: Reader) -> Iterator[_Arrival]:
    for task in tasks:
        digest = hashlib.sha256()
        ledger = Ledger(reader.unit)
        problem = None
        try:
            for arrival in reader.read(task.payload, digest, ledger):
                yield task, arrival
        except InputError as raised:
            problem = raised
        yield task, ShardEnd(task, digest.hexdigest(), ledger.closed(), problem)


class _Room:
    """Room for so many bytes; one item that is larger has it to itself."""

    def __init__(self, most: int, stopped: threading.Event) -> None:
        self._left = self._most = most
        self._stopped = stopped
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Wait until there is room for that many bytes, or for none of them if the run has stopped."""
        with self._changed:
            while not self._stopped.is_set() and self._left < min(count, self._most):
                self._changed.wait(_LOOK_EVERY_S)
            self._left -= count

    def give(self, count: int) -> None:
        """Those bytes are gone."""
        with self._changed:
            self._left += count
            self._changed.notify()


def _submitted(
    pool: ThreadPoolExecutor, prepare: Callable[[_Arrival], _Prepared], arrivals: Iterable[_Arrival], room: _Room
) -> Iterator[Future[_Prepared]]:
    """Each arrival being prepared by the pool, in order, as far ahead as there is room."""
    for arrived in arrivals:
        sample = arrived[1]
        size = len(sample.image) if isinstance(sample, Sample) and sample.image is not None else 0
        room.take(size)
        future = pool.submit(prepare, arrived)
        future.add_done_callback(lambda _, size=size: room.give(size))  # type: ignore[misc]
        yield future


def _decoder(card: EncoderCard, config: BatchingConfig, stopped: threading.Event) -> Callable[[_Arrival], _Prepared]:
    def prepare(arrived: _Arrival) -> _Prepared:
        task, sample = arrived
        if not isinstance(sample, Sample):
            return task, sample
        if sample.image is None:
            return task, Row(sample, None, None, None, None)
        sha256 = hashlib.sha256(sample.image).hexdigest()
        decoded = guarded_decode(
            sample.image,
            card.preprocess,
            card.rules,
            config.max_pixels,
            card.decode,
            max_seconds=config.max_sample_seconds,
            careful=task.careful,
            stopped=stopped.is_set,
        )
        if isinstance(decoded, Undecodable):
            return task, Reject(sample.key, sample.index, "decode", decoded.error_class, decoded.message)
        bare = Sample(sample.key, sample.index, None, sample.caption, sample.metadata)
        return task, Row(bare, sha256, decoded.width, decoded.height, decoded.pixels)

    return prepare


def _batches(arrivals: Iterable[_Prepared], size: int, pin_memory: bool) -> Iterator[PixelBatch | ShardEnd]:
    """Batches of `size` rows; the last one of a shard may be smaller, or contain only rejects."""
    ready: list[Row] = []
    rejects: list[Reject] = []
    for task, arrival in arrivals:
        if isinstance(arrival, Reject):
            rejects.append(arrival)
        elif isinstance(arrival, Row):
            ready.append(arrival)
        ended = isinstance(arrival, ShardEnd)
        if len(ready) == size or (ended and (ready or rejects)):
            yield _batch(task, ready, rejects, pin_memory)
            ready, rejects = [], []
        if isinstance(arrival, ShardEnd):
            yield arrival


def _batch(task: Task, ready: Sequence[Row], rejects: Sequence[Reject], pin_memory: bool) -> PixelBatch:
    pictures = [row.pixels for row in ready if row.pixels is not None]
    pixels = _stacked(pictures, pin_memory) if pictures else None
    return PixelBatch(task, tuple(replace(row, pixels=None) for row in ready), tuple(rejects), pixels)


def _stacked(pictures: list[torch.Tensor], pin_memory: bool) -> torch.Tensor:
    """[b, 3, h, w], by one copy. Pinned memory is reused by torch once the device has read it."""
    import torch

    shape = (len(pictures), *pictures[0].shape)
    return torch.stack(pictures, out=torch.empty(shape, dtype=pictures[0].dtype, pin_memory=pin_memory))


class _Ended:
    """The end marker of a prefetch queue: the source is exhausted, or raised `problem`."""

    def __init__(self, problem: BaseException | None) -> None:
        self.problem = problem


_Item = TypeVar("_Item")


class _Ahead(Generic[_Item]):
    """Iterates over `items`, prefetched by a background thread, with at most `depth` of them queued.

    `look` is called at intervals while waiting, or without a pause for as long as it returns that it has more to do; it
    may raise. Setting `stopped` ends thread and iteration.
    """

    def __init__(self, items: Iterator[_Item], depth: int, stopped: threading.Event, look: Callable[[], bool]) -> None:
        self._waiting: queue.Queue[_Item | _Ended] = queue.Queue(depth)
        self._stopped = stopped
        self._look = look
        self._thread = threading.Thread(target=self._make, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def _make(self, items: Iterator[_Item]) -> None:
        problem: BaseException | None = None
        try:
            for item in items:
                self._put(item)
                if self._stopped.is_set():
                    return
        except BaseException as raised:  # passed to the consuming thread
            problem = raised
        self._put(_Ended(problem))

    def _put(self, item: _Item | _Ended) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._waiting.put(item, timeout=_LOOK_EVERY_S)
                return

    def __iter__(self) -> Iterator[_Item]:
        busy = True
        while not self._stopped.is_set():
            try:
                item = self._waiting.get(block=not busy, timeout=_LOOK_EVERY_S)
            except queue.Empty:
                busy = self._look()
                continue
            busy = True
            if not isinstance(item, _Ended):
                yield item
            elif item.problem is not None:
                raise item.problem
            else:
                return

    def join(self) -> None:
        """Join the thread, once `stopped` is set. A thread blocked on a task that never comes is abandoned."""
        self._thread.join(_CLOSING_MAY_TAKE_S)
