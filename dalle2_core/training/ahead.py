"""Batches gathered, pinned and sent to a GPU by a thread, while it computes on the ones before."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dalle2_core.types import SizedBatch

_BATCHES_AHEAD = 2
_LOOK_EVERY_S = 0.1

B = TypeVar("B", bound=SizedBatch)
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def on_device(batches: Iterator[B], device: torch.device) -> Generator[B, None, None]:
    """The same batches on `device`; on CUDA two ahead of the one in use. Close it, which ends the thread."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return

    def send(batch: B) -> B:
        torch.cuda.set_device(device)  # of this thread, which would otherwise mean the first
        # A copy: streams may use the memory of a batch again for the next one.
        return pinned(batch).to(device)

    yield from ahead(batches, send, _BATCHES_AHEAD)


def pinned(batch: B) -> B:
    """The batch in page-locked memory, from which copies need not be waited for; as it is, if it is no dataclass."""
    if not dataclasses.is_dataclass(batch):
        return batch
    values = {it.name: getattr(batch, it.name) for it in dataclasses.fields(batch)}
    on_host = {name: it for name, it in values.items() if isinstance(it, Tensor) and it.device.type == "cpu"}
    again = {name: it.pin_memory() for name, it in on_host.items()}
    return cast("B", dataclasses.replace(cast("Any", batch), **again))


def ahead(items: Iterator[_Item], make: Callable[[_Item], _Made], depth: int) -> Iterator[_Made]:
    """`make(item)` of each, by a thread that is at most `depth` ahead; what either raises is raised here."""
    room = threading.Semaphore(depth)
    ready: queue.SimpleQueue[tuple[_Made] | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            while not stopped.is_set():
                if not room.acquire(timeout=_LOOK_EVERY_S):
                    continue
                for item in items:
                    ready.put((make(item),))
                    break
                else:
                    ready.put(None)
                    return
        except BaseException as problem:  # raised in the thread that asks
            ready.put(problem)

    thread = threading.Thread(target=work, name="batches ahead", daemon=True)
    thread.start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found[0]
            room.release()
    finally:
        stopped.set()
        thread.join()
