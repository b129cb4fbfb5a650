"""A thread pool for work that releases the GIL, such as matrix products."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import threadpoolctl

from ..progress import Listener, TaskReport
from .base import Task, TaskContext, WorkerLoop, do_one, one_by_one

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `work` makes of it, in the order of the items, on so many threads (None: the cores)."""
    count = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(count) as pool:
        ahead: list[tuple[_Item, Future[_Result]]] = []
        try:
            for item in items:
                ahead.append((item, pool.submit(work, item)))
                if len(ahead) > count:
                    first, result = ahead.pop(0)
                    yield first, result.result()
            for item, result in ahead:
                yield item, result.result()
        finally:
            for _, result in ahead:
                result.cancel()


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch computes on `count` threads while the block lasts: the process may be the caller's, who has others."""
    import torch  # not for those that only hand out

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def several_at_once(do: Callable[[Task, Listener], TaskReport], threads: int | None) -> WorkerLoop:
    """As `one_by_one`, with up to `threads` tasks at once (None: the cores), each on a thread of its own."""
    count = threads or len(os.sched_getaffinity(0))
    if count == 1:
        return one_by_one(do)

    def work(desk: TaskContext) -> None:
        asking, stopped = threading.Lock(), threading.Event()
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def next_task() -> Task | None:
            with asking:
                return None if stopped.is_set() else desk.next()

        def serve() -> None:
            try:
                while (task := next_task()) is not None:
                    do_one(do, desk, task)
            except BaseException as problem:  # whatever it is, it must end the worker
                ended.put(problem)
            else:
                ended.put(None)

        for _ in range(count):
            # Daemons: where one fails, another may wait for a task that only a worker with empty hands is given.
            threading.Thread(target=serve, name="task", daemon=True).start()
        try:
            for _ in range(count):
                problem = ended.get()
                if problem is not None:
                    raise problem
        finally:
            stopped.set()

    return work


def one_ahead(desk: TaskContext) -> Iterator[Task]:
    """The desk's tasks, each asked for as the one before it is begun: nobody waits for who hands out."""
    coming: queue.SimpleQueue[Task | BaseException | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            coming.put(desk.next())
        except BaseException as problem:  # raised where tasks are done
            coming.put(problem)

    def asked() -> None:
        threading.Thread(target=ask, name="next task", daemon=True).start()

    asked()
    while (task := coming.get()) is not None:
        if isinstance(task, BaseException):
            raise task
        asked()
        yield task


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Within the block a product of matrices takes one thread, and so does k-means: threads are given out elsewhere.

    A library that shares out a product over threads adds up in another order for another number of them.
    """
    with threadpoolctl.threadpool_limits(1):
        yield
