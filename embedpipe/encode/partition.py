"""The partition of the work for this process, from its options or the launcher's environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..errors import OptionError
from ..lock import Part

_RUN = re.compile(r"([0-9]+)(?:\(x([0-9]+)\))?")
_ENDS_WITH_NUMBER = re.compile(r"[0-9]+$")
_HOW = "Give i/n with i from 0 to n-1, such as 3/8, or `auto` under srun, a job array or torchrun"


def part_of(text: str, environment: Mapping[str, str]) -> Part:
    """Parse `3/8`; `auto` uses the environment variables of torchrun, srun or a SLURM job array, the first that is set.

    Raises InputError.
    """
    if text == "auto":
        return _launched(environment)
    index, slash, count = text.partition("/")
    if not slash or not index.strip().isdecimal() or not count.strip().isdecimal():
        raise OptionError(f"{text!r} is no part", _HOW)
    return Part(int(index), int(count))


def _launched(environment: Mapping[str, str]) -> Part:
    def number(name: str) -> int | None:
        value = environment.get(name, "")
        return int(value) if value.strip().lstrip("-").isdecimal() else None

    rank, world = number("RANK"), number("WORLD_SIZE")
    if rank is not None and world is not None:  # torchrun: each of its processes sees all GPUs of the machine
        return Part(rank, world, number("LOCAL_WORLD_SIZE") or 1, number("LOCAL_RANK") or 0)
    task, tasks = number("SLURM_PROCID"), number("SLURM_NTASKS")
    member, members = number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_COUNT")
    if member is not None and members is not None:
        first, step = number("SLURM_ARRAY_TASK_MIN") or 0, number("SLURM_ARRAY_TASK_STEP") or 1
        place = (member - first) // step
        return _on_slurm_node(Part(place * (tasks or 1) + (task or 0), members * (tasks or 1)), environment)
    if task is not None and tasks is not None:
        return _on_slurm_node(Part(task, tasks), environment)
    raise OptionError("`part='auto'`: no launcher says which of its processes this one is", _HOW)


def _on_slurm_node(part: Part, environment: Mapping[str, str]) -> Part:
    """`part` with the other tasks of its SLURM node, and what that node gives them together."""
    node, place, gpus_each = (
        _last_number(environment.get(name, "")) or 0
        for name in ("SLURM_NODEID", "SLURM_LOCALID", "SLURM_GPUS_PER_TASK")
    )
    # Of the step, which srun sets, before those of the allocation.
    tasks = _each(environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", ""))
    said = tasks[node] if node < len(tasks) else _last_number(environment.get("SLURM_NTASKS_PER_NODE", ""))
    neighbours = max(said or 1, place + 1)
    return replace(
        part,
        neighbours=neighbours,
        neighbour=place,
        shared_gpus=_last_number(environment.get("SLURM_GPUS_ON_NODE", "")) or gpus_each * neighbours or None,
        shared_cores=_last_number(environment.get("SLURM_CPUS_ON_NODE", "")),
    )


def _each(text: str) -> list[int]:
    """SLURM's count for each node: `8(x2),4` is 8, 8, 4. Empty for what is none."""
    found = [_RUN.fullmatch(run.strip()) for run in text.split(",")]
    return [int(run[1]) for run in found if run is not None for _ in range(int(run[2] or 1))] if all(found) else []


def _last_number(text: str) -> int | None:
    """The number that `text` ends with: 2 of `h100:2`."""
    found = _ENDS_WITH_NUMBER.search(text.strip())
    return int(found[0]) if found else None
