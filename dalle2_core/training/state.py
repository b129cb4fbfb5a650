"""Everything a resumed run needs, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from dalle2_core.errors import CheckpointError
from dalle2_core.modules import unchanged_weights, varying_state
from dalle2_core.training.sharded_tensors import StoredTensors


@dataclass(slots=True)
class MetricTotals:
    """Means since the last log line, kept as sums and counts so that a resumed window ends the same."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, numbers: Mapping[str, float], count: int) -> None:
        """Add means over `count` samples."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
            self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


@dataclass(frozen=True, slots=True)
class Best:
    """The evaluation that was best so far."""

    step: int
    value: float


@dataclass(slots=True)
class TrainState:
    """The state of a run after `step` finished optimizer steps.

    samples: rows seen. seconds: time spent in steps, over all sittings. evaluated_step: the last step that was
    evaluated; a run interrupted during an evaluation does it again. total_steps: of the run, 0 before it begins.
    history: how it was extended: the step from which on, and the changes in words.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    evaluated_step: int = 0
    best: Best | None = None
    total_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    tally: MetricTotals = field(default_factory=MetricTotals)

    @property
    def sharded(self) -> bool:
        """Whether each process holds some rows of the tensors, see `placement`."""
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    @property
    def averaged(self) -> nn.Module:
        """The model to judge and to keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def logged_steps(self) -> dict[str, int]:
        """The last step of each kind of log line that belongs to this state."""
        return {"train": self.step, "valid": self.evaluated_step, "online": self.evaluated_step}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file: the weights that change, their average, the optimizer's moments named by parameter."""
        parts = {"model": varying_state(self.model), "optimizer": self._optimizer_tensors()}
        if self.ema is not None:
            parts["ema"] = varying_state(self.ema.module)
        return parts

    def numbers(self) -> dict[str, Any]:
        """The rest, as plain JSON values."""
        return {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "evaluated_step": self.evaluated_step,
            "best": None if self.best is None else asdict(self.best),
            "total_steps": self.total_steps,
            "history": self.history,
            "tally": asdict(self.tally),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
        }

    def load(self, tensors: Mapping[str, StoredTensors], numbers: Mapping[str, Any], *, strict: bool = True) -> None:
        """Take over what `tensors()` and `numbers()` gave.

        strict: raise CheckpointError if a shape or name differs; False takes over what fits.
        """
        load_weights(self.model, tensors["model"], strict=strict)
        self._load_optimizer(tensors["optimizer"], strict)
        if self.ema is not None:
            load_weights(self.ema.module, tensors.get("ema", tensors["model"]), strict=strict)
            self.ema.n_averaged.fill_(numbers["ema_updates"])
        self.step = numbers["step"]
        self.samples = numbers["samples"]
        self.seconds = numbers["seconds"]
        self.evaluated_step = numbers["evaluated_step"]
        self.best = None if numbers["best"] is None else Best(**numbers["best"])
        self.total_steps = numbers.get("total_steps", 0)  # absent from runs of earlier versions, as is the history
        self.history = list(numbers.get("history", ()))
        self.tally = MetricTotals(**numbers["tally"])

    def go_on(self, total_steps: int, changes: Mapping[str, tuple[Any, Any]], data_grew: bool) -> None:
        """Note how a resumed run differs from what it was."""
        told = [f"{name}: {before} → {now}" for name, (before, now) in changes.items()]
        if self.total_steps not in (0, total_steps) and "train.steps" not in changes:
            told.insert(0, f"train.steps: {self.total_steps} → {total_steps}")
        if told:
            self.history.append({"step": self.step, "changes": told})
        if data_grew:
            self.best = None
        self.total_steps = total_steps

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[id(parameter)]}/{moment}": tensor
            for parameter, moments in self.optimizer.state.items()
            for moment, tensor in moments.items()
        }

    def _load_optimizer(self, tensors: StoredTensors, strict: bool) -> None:
        parameters = dict(self.model.named_parameters())
        for key, shape in tensors.shapes.items():
            name, _, moment = key.rpartition("/")
            if name not in parameters:
                if strict:
                    raise CheckpointError(f"the optimizer's state names a parameter {name!r} that the model lacks")
                continue
            parameter = parameters[name]
            if len(shape) and shape != parameter.shape and not strict:
                continue
            self.optimizer.state[parameter][moment] = (
                _in_memory_as(parameter, tensors.laid_out_as(parameter, key))
                if shape == parameter.shape
                else tensors[key].to(parameter.device)
            )


def _in_memory_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """A moment of each weight on the parameter's device, in the parameter's memory layout.

    The fused optimizer goes through both in the order of memory: where a file's layout (always contiguous) is not the
    parameter's (channels last), it would give each weight the moment of another.
    """
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def load_weights(model: nn.Module, tensors: StoredTensors, *, strict: bool = True) -> None:
    """Load a state dict, of weights that change. strict: names and shapes must all fit; False loads those that do.

    Raises CheckpointError naming the first misfits, or if nothing fits.
    """
    own, shapes = varying_state(model), tensors.shapes
    if not strict:
        own = {name: like for name, like in own.items() if shapes.get(name) == tuple(like.shape)}
        if not own:
            raise CheckpointError("weights of another model: no name and shape is this model's")
        model.load_state_dict({name: tensors.laid_out_as(like, name) for name, like in own.items()}, strict=False)
        return
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    problems += [
        f"{name} is {shapes[name]}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in shapes and shapes[name] != tuple(own[name].shape)
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"weights of another model: {'; '.join(problems[:3])}{more}")
    complete = not unchanged_weights(model)
    model.load_state_dict({name: tensors.laid_out_as(like, name) for name, like in own.items()}, strict=complete)
