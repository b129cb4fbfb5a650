"""How a model lies over the processes that train it: a copy in each (DDP), or some rows of it in each (FSDP2).

                    Copies                              Shards
weights             all, in every process               a share of the rows of every tensor; a block's are
moments, average    all, in every process               gathered for its turn and let go again
gradients           all, averaged                       a share, averaged
evaluated           as it is, by the first process      gathered for that time, by the first process
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim.swa_utils import AveragedModel

from dalle2_core.errors import ConfigError
from dalle2_core.modules import unchanged_weights
from dalle2_core.training.config import TrainConfig
from dalle2_core.training.distributed import Processes
from dalle2_core.training.ema import make_ema
from dalle2_core.training.step import LossPass
from dalle2_core.types import NonGradientUpdate


@runtime_checkable
class Unitary(Protocol):
    """A network that says which of its parts are gathered one at a time."""

    def sharding_units(self) -> Sequence[nn.Module]:
        """Parts that share no parameter and are always called as modules (by their forward pass)."""
        ...


class Replicated:
    """Every process holds all of the model; gradients become the mean over all."""

    def __init__(self, model: nn.Module, together: Processes, ema_decay: float | None) -> None:
        self.model = model
        self.ema: AveragedModel | None = None if ema_decay is None else make_ema(model, ema_decay)
        self.loss_pass = together.parallel(LossPass(model))
        self._together = together

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[nn.Module | None]:
        """`module`, one of `model` and `ema.module`, whole in the first process; None in the others."""
        yield module if self._together.is_first else None

    def finish(self) -> None:
        """Leave the trained weights in the model that was given."""


class Sharded:
    """Every process holds a share of the rows of each tensor: torch's `fully_shard`, a group for each unit.

    The model that was given is trained in a copy. It is empty meanwhile, and filled for as long as the first process
    evaluates; every process must take part in that.
    """

    def __init__(self, whole: nn.Module, together: Processes, ema_decay: float | None) -> None:
        device = next(whole.parameters()).device
        _begin_alike(whole)
        self._whole = whole
        self._layouts = [(it.shape, it.stride()) for it in whole.parameters()]
        self._together = together
        # One after the other, so that no more than two whole ones are there at a time.
        self.ema: AveragedModel | None = None if ema_decay is None else make_ema(whole, ema_decay)
        if self.ema is not None:
            _shard(self.ema.module, device, together.world)
        self.model = copy.deepcopy(whole)
        self._empty()
        self.loss_pass = _shard(LossPass(self.model), device, together.world)

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[nn.Module | None]:
        """See `Replicated`. Every process must call it."""
        self._fill(module, self._together.is_first)
        try:
            yield self._whole if self._together.is_first else None
        finally:
            self._empty()

    def finish(self) -> None:
        """See `Replicated`. Every process must call it."""
        self._fill(self.model, True)

    @torch.no_grad()
    def _fill(self, source: nn.Module, here: bool) -> None:
        """Gather the tensors of `source` one by one, which all must do, and keep them if they are wanted here."""
        for own, part, (shape, stride) in zip(
            self._whole.parameters(), source.parameters(), self._layouts, strict=True
        ):
            found = cast("Any", part).full_tensor()
            if here:
                own.data = torch.empty_strided(shape, stride, dtype=found.dtype, device=found.device).copy_(found)
        for kept, now in zip(self._whole.buffers(), source.buffers(), strict=True):
            kept.copy_(now)

    def _empty(self) -> None:
        for own in self._whole.parameters():
            own.data = own.data.new_empty(0)


def place_model(model: nn.Module, config: TrainConfig, together: Processes) -> Replicated | Sharded:
    """Lay `model`, and its moving average, over the processes. Raises ConfigError for one that cannot be sharded."""
    if config.parallel == "ddp" or together.world == 1:
        return Replicated(model, together, config.ema_decay)
    if isinstance(model, NonGradientUpdate):
        raise ConfigError(
            f"a {type(model).__name__} learns by more than gradients, for which it must be whole: give "
            "train.parallel=ddp"
        )
    if unchanged_weights(model):
        raise ConfigError(
            "a prior that adapters alone are trained of is not cut into shards: give train.parallel=ddp, or lora.rank=0"
        )
    return Sharded(model, together, config.ema_decay)


@torch.no_grad()
def _begin_alike(model: nn.Module) -> None:
    """Give every process the weights of the first, as DDP does."""
    for tensor in (*model.parameters(), *model.buffers()):
        sent = tensor.contiguous()
        torch.distributed.broadcast(sent, 0)
        tensor.copy_(sent)


def _shard(root: nn.Module, device: torch.device, world: int) -> nn.Module:
    """Shard in place: each unit a group of its own, and what is in no unit another."""
    from torch.distributed.fsdp import fully_shard

    for parameter in root.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no other layout, such as channels last
    mesh = init_device_mesh(device.type, (world,))
    units = [unit for module in root.modules() if isinstance(module, Unitary) for unit in module.sharding_units()]
    # Weights are gathered in float32, and autocast makes bfloat16 of them where it would without: the numbers are
    # those of one process. MixedPrecisionPolicy would halve what is sent, and compute the norms in bfloat16, too.
    for unit in (*units, root):
        fully_shard(unit, mesh=mesh)
    return root
