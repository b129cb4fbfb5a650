"""Executors: distribute tasks to workers. EXECUTORS maps a name to its executor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import OptionError, did_you_mean
from .base import Executor, FailedTask, Outcome, Task, TaskContext, Tasks, WorkerFactory, WorkerLoop, one_by_one
from .inline import InlineExecutor
from .one_gpu import see_only
from .processes import ProcessExecutor
from .ray import RayExecutor
from .ray_cluster import Cluster, WorkerResources, joined_cluster
from .resources import Allocation, ResourceRequest, places_here, places_on_cluster
from .threads import in_order, one_ahead, several_at_once, torch_threads

EXECUTORS: dict[str, type[InlineExecutor] | type[ProcessExecutor] | type[RayExecutor]] = {
    "inline": InlineExecutor,
    "processes": ProcessExecutor,
    "ray": RayExecutor,
}

__all__ = [
    "EXECUTORS",
    "Allocation",
    "Cluster",
    "Executor",
    "FailedTask",
    "InlineExecutor",
    "Outcome",
    "ProcessExecutor",
    "RayExecutor",
    "ResourceRequest",
    "Task",
    "TaskContext",
    "Tasks",
    "WorkerFactory",
    "WorkerLoop",
    "in_order",
    "one_ahead",
    "one_by_one",
    "open_executor",
    "open_places",
    "refuse_address_beside",
    "see_only",
    "several_at_once",
    "torch_threads",
]


def open_executor(name: str, workers: int) -> Executor:
    """Create the executor `name` with that many single-core workers; `auto` is inline for one, else processes."""
    if name == "auto":
        name = "inline" if workers == 1 else "processes"
    if name not in EXECUTORS:
        raise OptionError(f"no executor {name!r}", did_you_mean(name, EXECUTORS))
    return EXECUTORS[name](workers)


def refuse_address_beside(name: str, cluster: Cluster) -> None:
    """Raise InputError if a cluster address is given to an executor that does not use one."""
    if name != "ray" and cluster.address is not None:
        raise OptionError(f"`address` is for `executor='ray'`, not {name}", "Give `executor='ray'`, or drop `address`")


@contextlib.contextmanager
def open_places(
    name: str, demand: ResourceRequest, cluster: Cluster | None = None
) -> Iterator[tuple[Executor, Allocation]]:
    """The executor `name`, ready within the block, and the allocation of its workers. See `open_executor`.

    Raises InputError for an unknown executor, an address without a cluster, or insufficient resources.
    """
    cluster = cluster or Cluster()
    refuse_address_beside(name, cluster)
    if name != "ray":
        places = places_here(demand)
        executor = open_executor(name, len(places.devices))
        yield executor, places
        return
    cores = demand.workers * (demand.threads or 1) if demand.gpus == 0 else 1
    with joined_cluster(cluster, cores):
        places = places_on_cluster(demand)
        yield RayExecutor(len(places.devices), cluster, WorkerResources(places.threads, places.gpus_each)), places
