"""The processes of a run, one on each device: who takes which rows, and how numbers and gradients become one.

The only place that knows accelerate. It finds the other processes (torchrun, accelerate launch, a cluster's own
variables), joins them and averages gradients; what decides the numbers stays with the loop: data order, draws,
accumulation and precision.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented there

from dalle2_core.errors import ConfigError

# The others wait while the first process evaluates, or reads all images to join them with their rows. One that died is
# noticed at once, whatever this is: its connections end, and torchrun ends the others.
_LONGEST_WAIT = timedelta(hours=12)


class Processes:
    """This process among `world`, the one with number `rank`.

    Code that all processes run calls the same methods in the same order; those that talk to the others (`add_up`,
    `gather`, `wait`) would otherwise wait for ever.
    """

    def __init__(self, accelerator: Any) -> None:
        """accelerator: an accelerate.Accelerator. Raises ConfigError if it would change the numbers by itself."""
        if accelerator.mixed_precision != "no":
            raise ConfigError(
                f"accelerate was told mixed_precision={accelerator.mixed_precision}; leave that out and give "
                "train.precision=bfloat16, so that a resumed run cannot differ"
            )
        if accelerator.gradient_accumulation_steps != 1:
            raise ConfigError("accelerate was told to accumulate gradients; give train.accumulate instead")
        if getattr(getattr(accelerator, "state", None), "fsdp_plugin", None) is not None:
            raise ConfigError("accelerate was told to shard the model; give train.parallel=fsdp instead")
        self._accelerator = accelerator
        self.world: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        # On a GPU machine a lone process may well train on the CPU: accelerate's device is for several.
        self.device: torch.device = accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates, writes and speaks."""
        return self.rank == 0

    def share(self, rows: int) -> tuple[int, int]:
        """[start, stop) of this process in a batch of `rows`: contiguous, and as even as can be."""
        return rows * self.rank // self.world, rows * (self.rank + 1) // self.world

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module`, whose gradients become the mean over all processes in each backward pass."""
        return module if self.world == 1 else cast("nn.Module", self._accelerator.prepare_model(module))

    def unsynced(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients of what `parallel` gave stay this process's own and add up.

        Not those of a sharded module, which has no room for them: each part's are averaged at once.
        """
        return cast("AbstractContextManager[None]", self._accelerator.no_sync(module))

    def add_up(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes, which must give the same names."""
        if self.world == 1:
            return dict(numbers)
        names = sorted(numbers)
        sums = torch.tensor([numbers[name] for name in names], dtype=torch.float64, device=self.device)
        return dict(zip(names, self._accelerator.reduce(sums, "sum").tolist(), strict=True))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor on `device`, which has the same shape in each."""
        return tensor if self.world == 1 else cast("Tensor", self._accelerator.reduce(tensor, "sum"))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; plain values that can be pickled."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return cast("list[Any]", gather_object([value]))

    def wait(self) -> None:
        """Until all are here."""
        self._accelerator.wait_for_everyone()


def join_processes(device: torch.device | str | None = None) -> Processes:
    """Find out who else trains, and join them: under torchrun its processes, else this one alone.

    device: "cpu" keeps processes off their GPUs. Each of several processes otherwise takes the GPU of its local rank.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        _join_again(device)
    on_cpu = several and device is not None and torch.device(device).type == "cpu"
    # Which parameters have a part in a loss may change from step to step: dropped texts, self-conditioning.
    wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
    joining = InitProcessGroupKwargs(timeout=_LONGEST_WAIT)
    return Processes(Accelerator(cpu=on_cpu, kwargs_handlers=[wrapping, joining]))


def _join_again(device: torch.device | str | None) -> None:
    """Join the others after torchrun started all processes again, before accelerate would.

    The store in which processes look each other up outlives a restart (torch 2.14), with the addresses of those that
    were killed: a prefix for each attempt keeps the new ones from waiting for them.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or distributed.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.is_available() and (device is None or torch.device(device).type != "cpu")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=hosts)
    again = PrefixStore(f"attempt-{attempt}", store)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=again, rank=rank, world_size=world, timeout=_LONGEST_WAIT
    )
