"""Background writing: a thread writes finished shards, one at a time, while the next is encoded."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from types import TracebackType

from .shard_buffer import ShardBuffer

_LOOK_EVERY_S = 0.1


class Writer:
    """Calls `finish` for each shard on a background thread, in order of arrival.

    One shard may wait while another is written. An exception from `finish` is raised by the next call here. Leaving the
    `with` block waits for all accepted shards; on an exception, only for the one being written.
    """

    def __init__(self, finish: Callable[[ShardBuffer], None]) -> None:
        self._finish = finish
        self._waiting: queue.Queue[ShardBuffer | None] = queue.Queue(1)
        self._problem: BaseException | None = None
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._write, name="write", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, at: TracebackType | None
    ) -> None:
        if kind is not None:
            self._dropped.set()
        self._put(None)
        self._thread.join()
        if kind is None:
            self.check()

    def take(self, shard: ShardBuffer) -> None:
        """Queue a shard; blocks while another one is queued."""
        self._put(shard)
        self.check()

    def check(self) -> None:
        """Raise the writer's exception, if any."""
        if self._problem is not None:
            raise self._problem

    def _put(self, item: ShardBuffer | None) -> None:
        while self._thread.is_alive():
            try:
                self._waiting.put(item, timeout=_LOOK_EVERY_S)
                return
            except queue.Full:
                continue

    def _next(self) -> ShardBuffer | None:
        """The next shard. Looks for itself now and then: an interruption in `put` can lose the call that wakes it."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._waiting.get(timeout=_LOOK_EVERY_S)

    def _write(self) -> None:
        try:
            while (shard := self._next()) is not None:
                if not self._dropped.is_set():
                    self._finish(shard)
        except BaseException as raised:  # passed to the thread that queues
            self._problem = raised
