"""Background prefetching."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

_LOOK_EVERY_S = 0.1

_Item = TypeVar("_Item")


class _Ended:
    """The end marker of the queue: the source is exhausted, or raised `problem`."""

    def __init__(self, problem: BaseException | None) -> None:
        self.problem = problem


def prefetch(items: Generator[_Item, None, None], depth: int) -> Iterator[_Item]:
    """Yield `items`, produced by a background thread at most `depth` ahead of the one in use.

    An item must no longer be used once the next is requested. Exceptions of the source are raised here. The thread ends
    when this generator is exhausted, closed or garbage-collected.
    """
    made: queue.SimpleQueue[_Item | _Ended] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def make() -> None:
        problem: BaseException | None = None
        try:
            while not stopped.is_set():
                # Not for ever: an interruption in `release` can lose the call that wakes this thread.
                if room.acquire(timeout=_LOOK_EVERY_S) and not stopped.is_set():
                    made.put(next(items))
        except StopIteration:
            pass
        except BaseException as raised:  # passed to the consuming thread
            problem = raised
        items.close()
        made.put(_Ended(problem))

    thread = threading.Thread(target=make, name="loading ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _Ended):
                if item.problem is not None:
                    raise item.problem
                return
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()
        thread.join()
