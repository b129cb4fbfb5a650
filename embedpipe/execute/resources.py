"""Allocate workers, devices and threads: the request checked against what is available."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import InputError
from .ray_cluster import cpus_for, gpus_there

_ON_CPU = "Give `gpus=0` and `workers=N` to work on the CPU"


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """The resources a job requests. gpus: workers with a GPU each; None uses all. workers: CPU workers if gpus is 0.
    threads: per worker; None divides the cores evenly. neighbours: similar processes on this machine, and the rank of
    this one: they share its devices and cores. shared_gpus, shared_cores: what all of them have together, if known: a
    process that sees fewer was given its own.
    """

    gpus: int | None = 0
    workers: int = 1
    threads: int | None = None
    neighbours: int = 1
    neighbour: int = 0
    shared_gpus: int | None = None
    shared_cores: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """One device for each worker, and the threads of each."""

    devices: tuple[str, ...]
    threads: int

    @property
    def gpus_each(self) -> int:
        """GPUs per worker, 0 or 1."""
        return int(self.devices[0].startswith("cuda"))


def places_here(demand: ResourceRequest) -> Allocation:
    """Allocate on this machine. Raises InputError if more GPUs are requested than there are."""
    there = _gpus_here() if demand.gpus != 0 else 0
    mine = _share_of_gpus(demand, there)
    wanted = len(mine) if demand.gpus is None else demand.gpus
    if wanted > len(mine):
        each = f" for each of {demand.neighbours} processes" if len(mine) < there else ""
        raise InputError(f"{wanted} GPUs asked for, {len(mine)} found{each}", _ON_CPU)
    devices = [f"cuda:{number}" for number in mine[:wanted]] or ["cpu"] * demand.workers
    return Allocation(tuple(devices), demand.threads or max(1, _share_of_cores(demand) // len(devices)))


def _share_of_gpus(demand: ResourceRequest, there: int) -> range:
    """The numbers of this process's GPUs among the visible ones; some processes have one in common if there are more of
    them than GPUs.
    """
    # A single visible GPU was assigned to this process by its launcher, and so were several that are not all.
    if demand.neighbours == 1 or there < max(2, demand.shared_gpus or 0):
        return range(there)
    first = demand.neighbour * there // demand.neighbours
    return range(first, max(first + 1, (demand.neighbour + 1) * there // demand.neighbours))


def _share_of_cores(demand: ResourceRequest) -> int:
    there = len(os.sched_getaffinity(0))
    return there // demand.neighbours if there >= (demand.shared_cores or 0) else there


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def places_on_cluster(demand: ResourceRequest) -> Allocation:
    """Allocate on the connected Ray cluster. Capacity is checked when workers are started."""
    wanted = gpus_there() if demand.gpus is None else demand.gpus
    workers = wanted or demand.workers
    # An actor sees only its own GPU, as number 0.
    devices = ("cuda:0" if wanted else "cpu",) * workers
    return Allocation(devices, demand.threads or cpus_for(workers, int(bool(wanted))))
