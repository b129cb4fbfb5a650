"""Allocate workers, devices and threads: the request checked against what is available."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from .ray_cluster import cpus_for, gpus_there

_ON_CPU = "Give `gpus=0` and `workers=N` to work on the CPU"
# A second worker feeds a GPU while the interpreter of the first is busy: it needs cores that decode, and memory for a
# second model and its activations.
_CORES_FOR_TWO = 8
_BYTES_FOR_TWO = 32 << 30


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """The resources a job requests. gpus: how many GPUs; None uses all. workers: CPU workers if gpus is 0.
    workers_per_gpu: None is two where each GPU has cores and memory for them, else one. threads: per worker; None
    divides the cores evenly. neighbours: similar processes on this machine, and the rank of this one: they share its
    devices and cores. shared_gpus, shared_cores: what all of them have together, if known: a process that sees fewer
    was given its own.
    """

    gpus: int | None = 0
    workers: int = 1
    threads: int | None = None
    neighbours: int = 1
    neighbour: int = 0
    shared_gpus: int | None = None
    shared_cores: int | None = None
    workers_per_gpu: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """One device for each worker, and the threads of each. workers_per_gpu: how many have each GPU in common."""

    devices: tuple[str, ...]
    threads: int
    workers_per_gpu: int = 1

    @property
    def gpus_each(self) -> float:
        """GPUs per worker: 0, 1 or a share, rounded down to Ray's four digits so that all shares fit."""
        on_gpu = self.devices[0].startswith("cuda")
        return 10_000 // self.workers_per_gpu / 10_000 if on_gpu else 0


def places_here(demand: ResourceRequest) -> Allocation:
    """Allocate on this machine. Raises InputError if more GPUs are requested than there are."""
    there = _gpus_here() if demand.gpus != 0 else 0
    mine = _share_of_gpus(demand, there)
    wanted = len(mine) if demand.gpus is None else demand.gpus
    if wanted > len(mine):
        shared = f" for each of {demand.neighbours} processes" if len(mine) < there else ""
        raise InputError(f"{wanted} GPUs asked for, {len(mine)} found{shared}", _ON_CPU)
    cores = _share_of_cores(demand)
    each = _workers_per_gpu(demand, mine[:wanted], cores)
    # A second worker of a GPU comes after the first of every other, so that few shards are spread over all GPUs.
    devices = [f"cuda:{number}" for number in mine[:wanted]] * each or ["cpu"] * demand.workers
    return Allocation(tuple(devices), demand.threads or max(1, cores // len(devices)), each)


def _workers_per_gpu(demand: ResourceRequest, gpus: Sequence[int], cores: int) -> int:
    if demand.workers_per_gpu is not None:
        return demand.workers_per_gpu
    alone = demand.neighbours == 1 or len(gpus) > 1  # else other processes may have this GPU, too
    roomy = gpus and alone and cores >= _CORES_FOR_TWO * len(gpus) and min(map(_gpu_bytes, gpus)) >= _BYTES_FOR_TWO
    return 2 if roomy else 1


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


def _gpu_bytes(number: int) -> int:
    """Memory of a visible GPU; 0 if its driver does not tell."""
    import torch

    try:
        return int(torch.cuda.get_device_properties(number).total_memory)
    except (RuntimeError, AssertionError):
        return 0


def places_on_cluster(demand: ResourceRequest) -> Allocation:
    """Allocate on the connected Ray cluster. Capacity is checked when workers are started."""
    wanted = gpus_there() if demand.gpus is None else demand.gpus
    each = demand.workers_per_gpu or 1
    # An actor sees only its own GPU, as number 0.
    devices = ("cuda:0",) * (wanted * each) or ("cpu",) * demand.workers
    share = Allocation(devices, 1, each).gpus_each
    return Allocation(devices, demand.threads or cpus_for(len(devices), share), each)
