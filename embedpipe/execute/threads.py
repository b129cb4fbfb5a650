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
    """Each item with the result of `work`, in order, on `threads` threads (None: one per core)."""
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
    """Limit PyTorch to `count` threads within the block: the process may belong to a caller with its own setting."""
    import torch  # not needed by processes that only distribute tasks

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def several_at_once(do: Callable[[Task, Listener], TaskReport], threads: int | None) -> WorkerLoop:
    """As `one_by_one`, with up to `threads` concurrent tasks (None: one per core), each on its own thread."""
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
            except BaseException as problem:  # any exception must end the worker
                ended.put(problem)
            else:
                ended.put(None)

        for _ in range(count):
            # Daemons: if one fails, another may be blocked on a task that is reserved for idle workers.
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
    """The context's tasks, each requested when the previous one starts, so that no time is lost waiting."""
    coming: queue.SimpleQueue[Task | BaseException | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            coming.put(desk.next())
        except BaseException as problem:  # re-raised in the thread that does the tasks
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
    """Within the block, matrix products and k-means use one thread each: parallelism is managed elsewhere.

    The summation order of a multithreaded product depends on the number of threads.
    """
    with threadpoolctl.threadpool_limits(1):
        yield
