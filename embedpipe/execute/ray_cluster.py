"""Connect to a Ray cluster and query its resources. The only file that starts or joins one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, MissingExtra

_MAY_TAKE_S = 30.0
_LOOPBACK = "127.0.0.1"
_STORE_BYTES = 80 << 20  # only the worker factory is ever put there
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage statistics, unless the user enables them
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # or Ray prints a paragraph per ended worker; ours is one line
}
# On Linux Ray replaces 127.0.0.1 with an externally reachable address, unless this variable disables that.
_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Ray cluster to use, and the timeouts of its workers.

    address: of the head, host:port; None takes RAY_ADDRESS, or else starts one on this machine, on loopback, that ends
    with the run. silence_s: seconds without a message after which a worker is presumed dead. start_s: how long to wait
    for the first worker to start.
    """

    address: str | None = None
    silence_s: float = 300.0
    start_s: float = 300.0


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """The resources of one worker: cores, and a GPU or a share of one."""

    cpus: int = 1
    gpus: float = 0

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}{f' and {self.gpus:g} GPU' if self.gpus else ''}"


def ray_library() -> Any:
    """The module `ray`. Raises MissingExtra."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)  # before the import, which reads them
    try:
        import ray
    except ImportError as problem:
        raise MissingExtra("the ray executor needs Ray", 'pip install "embedpipe[ray]"') from problem
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


@contextlib.contextmanager
def joined_cluster(cluster: Cluster, cpus: int) -> Iterator[None]:
    """Connect to the cluster within the block; a nested block does nothing.

    cpus: the minimum number of cores of a cluster started here, since more workers than cores may be requested on this
    machine. Raises InputError if there is no cluster at the address.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault(_ALONE, "0")
    elif address.startswith("ray://"):
        raise InputError(
            f"{address}: Ray's client protocol is not spoken here",
            "Run it on a machine of the cluster, with `address=host:port`",
        )
    ray = ray_library()
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    with _our_own_signals():
        if address is not None:
            _join(ray, address, quiet)
        else:
            # Not reachable from outside this machine.
            there = max(cpus, len(os.sched_getaffinity(0)))
            alone = {"include_dashboard": False, "object_store_memory": _STORE_BYTES, "_node_ip_address": _LOOPBACK}
            ray.init("local", num_cpus=there, **alone, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _join(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    try:
        host, colon, port = address.rpartition(":")
        if colon:  # Ray itself would retry for minutes
            socket.create_connection((host.strip("[]"), int(port)), _MAY_TAKE_S).close()
        ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as problem:
        said = str(problem).strip().splitlines()
        raise InputError(
            f"{address}: no Ray cluster there that can be joined: {said[0] if said else type(problem).__name__}",
            "Start its head node (see `ray start`) and give its host:port; "
            "Ray and Python must be of the same versions, and "
            "RAY_AUTH_MODE and its token the same on all sides",
        ) from problem


@contextlib.contextmanager
def _our_own_signals() -> Iterator[None]:
    """Restore the SIGTERM handler that Ray replaces: it belongs to the calling program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def gpus_there() -> int:
    """GPUs of the whole cluster."""
    return sum(int(node.get("GPU", 0)) for node in _nodes())


def cpus_for(workers: int, gpus: float) -> int:
    """Cores per worker when divided among so many workers: the largest number with which all fit."""
    most = int(max((node.get("CPU", 0) for node in _nodes()), default=0))
    fitting = (cpus for cpus in range(most, 1, -1) if _places(WorkerResources(cpus, gpus)) >= workers)
    return next(fitting, 1)


def require_resources(workers: int, room: WorkerResources) -> None:
    """Raise InputError if the cluster cannot fit the workers at all, or not while others use it."""
    places = _places(room)
    if places < workers:
        nodes = _nodes()
        cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
        have = "nodes have" if len(nodes) != 1 else "node has"
        raise InputError(
            f"no room for {workers} worker{'s' * (workers != 1)} of {room} each: the cluster's {len(nodes)} "
            f"{have} {cpus} CPUs and {gpus} GPUs together, which makes {places}",
            "Ask for fewer workers or GPUs, or for fewer threads each, or add nodes",
        )
    until = time.monotonic() + _MAY_TAKE_S  # the resources of a killed run are released soon
    while (free := _free(room)) < workers:
        if time.monotonic() > until:
            raise InputError(
                f"the cluster is busy: {workers} worker{'s' * (workers != 1)} of {room} asked for, room for {free} now",
                "Wait for what runs there, see `ray status`, or ask for fewer",
            )
        time.sleep(0.5)


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray_library().nodes() if node["Alive"]]


def _places(room: WorkerResources) -> int:
    """How many workers fit on the nodes if nothing else runs there."""
    return sum(_fit(node, room) for node in _nodes())


def _free(room: WorkerResources) -> int:
    """An upper bound on how many fit now: Ray reports free resources only as a total over all nodes."""
    return _fit(ray_library().available_resources(), room)


def _fit(resources: dict[str, float], room: WorkerResources) -> int:
    by_cpu = int(resources.get("CPU", 0) // room.cpus)
    return min(by_cpu, int(resources.get("GPU", 0) // room.gpus)) if room.gpus else by_cpu
