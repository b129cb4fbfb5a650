"""The partition of the work for this process, from its options or the launcher's environment variables."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import OptionError
from ..lock import Part

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
        return Part(place * (tasks or 1) + (task or 0), members * (tasks or 1))
    if task is not None and tasks is not None:
        return Part(task, tasks)
    raise OptionError("`part='auto'`: no launcher says which of its processes this one is", _HOW)
