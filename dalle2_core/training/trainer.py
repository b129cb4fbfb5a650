"""DiffusionPriorTrainer: one's own loop around the same parts as `train`, by DALLE2-pytorch's names.

trainer = DiffusionPriorTrainer(diffusion_prior, lr=3e-4, wd=1e-2, ema_beta=0.99)
loss = trainer(text_embed=text, image_embed=image, max_batch_size=64)   # forward and backward
trainer.update()                                                        # optimizer, schedule, average
trainer.sample(text)                                                    # of the averaged prior
trainer.save("checkpoint"); trainer.load("checkpoint")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.draws import RowDraws, derived_seed
from dalle2_core.errors import ConfigError, NonFiniteLoss, ShapeError
from dalle2_core.keywords import from_keywords
from dalle2_core.training.checkpoint import read_checkpoint, write_checkpoint
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.ema import make_ema
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.randomness import seeded_layers
from dalle2_core.training.state import TrainState


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """The keywords of DALLE2-pytorch's trainer, with its defaults, and `betas` and `seed`.

    wd: weight decay; group_wd_params: on matrices only. warmup_steps: of a linear warm-up.
    cosine_decay_max_steps: steps over which the rate falls to 0; None leaves it constant.
    ema_beta: decay of the moving average. It copies the weights for ema_update_after_step updates, and then takes every
    ema_update_every-th. seed: of noise and dropout.
    """

    lr: float = 3e-4
    wd: float = 1e-2
    eps: float = 1e-6
    max_grad_norm: float | None = None
    group_wd_params: bool = True
    warmup_steps: int | None = None
    cosine_decay_max_steps: int | None = None
    use_ema: bool = True
    ema_beta: float = 0.9999
    ema_update_after_step: int = 100
    ema_update_every: int = 10
    betas: tuple[float, float] = (0.9, 0.99)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_beta < 1:
            raise ConfigError(f"ema_beta is {self.ema_beta}; it must be in [0, 1)")
        if self.ema_update_every < 1 or self.ema_update_after_step < 0:
            raise ConfigError("ema_update_every must be 1 or more, and ema_update_after_step 0 or more")

    def optim(self) -> OptimConfig:
        """The same, as the parts of this package take it."""
        return OptimConfig(
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.wd,
            decay_matrices_only=self.group_wd_params,
            warmup_steps=self.warmup_steps or 0,
            schedule="constant" if self.cosine_decay_max_steps is None else "cosine",
            max_grad_norm=self.max_grad_norm,
        )


class DiffusionPriorTrainer(nn.Module):
    """Optimizer, schedule and moving average around a prior.

    `trainer(…)` takes what the prior's forward pass takes, adds to its gradients and returns the loss; the gradients of
    several calls before an `update()` add up. Under torchrun every process calls it with as many rows of its own, and
    gradients are averaged.
    """

    def __init__(self, diffusion_prior: nn.Module, accelerator: Any = None, **keywords: Any) -> None:
        """accelerator: an accelerate.Accelerator; None finds out by itself. keywords: the fields of TrainerConfig.

        An unknown keyword is a TypeError that names the near ones.
        """
        super().__init__()
        self.config = from_keywords(TrainerConfig, "DiffusionPriorTrainer", keywords)
        self.diffusion_prior = diffusion_prior
        self.device = next(diffusion_prior.parameters()).device
        self._optim = self.config.optim()
        self._together = Processes(accelerator) if accelerator is not None else join_processes(self.device)
        ema = make_ema(diffusion_prior, self.config.ema_beta) if self.config.use_ema else None
        self._state = TrainState(diffusion_prior, make_optimizer(diffusion_prior, self._optim), ema)
        # Not registered as a child: the prior is one already.
        self._pass = (self._together.parallel(diffusion_prior),)
        self._rows = 0

    @property
    def step(self) -> int:
        """Updates done."""
        return self._state.step

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the prior's parameters."""
        return self._state.optimizer

    @property
    def ema_diffusion_prior(self) -> nn.Module:
        """The averaged prior; the prior itself with use_ema=False."""
        return self._state.averaged

    def forward(self, *inputs: Any, max_batch_size: int | None = None, **named: Any) -> float:
        """The loss, the mean over the rows; in training mode, its gradients are added to the parameters'.

        inputs, named: as the prior's forward pass takes them. max_batch_size: rows taken at once, for want of memory;
        it changes the result by rounding only (and the masks of dropout). Raises NonFiniteLoss.
        """
        total = 0.0
        rows = _rows(inputs, named)
        for start, part, named_part in _parts(inputs, named, rows, max_batch_size):
            count = min(rows - start, max_batch_size or rows)
            place = self._rows + start
            seed = derived_seed(self.config.seed, self.step, "noise", self._together.rank)
            draws = RowDraws(seed, place, count, self.device)
            with seeded_layers(self.config.seed, self.step, self.device, f"layers/{self._together.rank}/{place}"):
                loss = self._pass[0](*part, **named_part, generator=draws) * (count / rows)
            if self.training:
                loss.backward()
            total += float(loss.detach())
        self._rows += rows
        if not math.isfinite(total):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"update {self.step + 1}: the loss is {total}; look at that batch, or lower lr", self.step
            )
        return total

    def update(self) -> None:
        """One step of the optimizer, then of the average; gradients are cleared. Raises NonFiniteLoss."""
        state, config = self._state, self.config
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self.diffusion_prior.parameters(), limit))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(f"update {state.step + 1}: the gradient's norm is {norm}; lower lr", state.step + 1)
        rate = learning_rate(state.step + 1, config.cosine_decay_max_steps or 0, self._optim)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.samples += self._rows
        self._rows = 0
        self._average()

    def _average(self) -> None:
        ema, config = self._state.ema, self.config
        if ema is None:
            return
        if self.step <= config.ema_update_after_step:
            ema.n_averaged.zero_()  # the next update copies
            ema.update_parameters(self.diffusion_prior)
        elif self.step % config.ema_update_every == 0:
            ema.update_parameters(self.diffusion_prior)

    @torch.no_grad()
    def sample(self, *inputs: Any, max_batch_size: int | None = None, **named: Any) -> Tensor:
        """Image embeddings of the averaged prior, as its `sample` gives them. max_batch_size: rows taken at once."""
        rows = _rows(inputs, named)
        parts = _parts(inputs, named, rows, max_batch_size)
        return torch.cat([self.ema_diffusion_prior.sample(*part, **rest) for _, part, rest in parts])  # type: ignore[operator]

    def save(self, path: Path | str, overwrite: bool = True) -> None:
        """Write everything that `load` needs as a folder of safetensors and JSON, whole. The first process writes.

        Raises CheckpointError if the disk refuses, or the folder is there and overwrite is False.
        """
        if self._together.is_first:
            if not overwrite and Path(path).exists():
                raise ConfigError(f"{path}: is there already; give another path, or overwrite=True")
            write_checkpoint(Path(path), self._state, {"trainer": asdict(self.config)})
        self._together.wait()

    def load(self, path: Path | str) -> None:
        """Go on from what `save` wrote. Raises CheckpointError if it is not whole, or of another prior."""
        content, tensors = read_checkpoint(Path(path))
        self._state.load(tensors, content["numbers"])
        self._rows = 0


def _rows(inputs: tuple[Any, ...], named: dict[str, Any]) -> int:
    """How many rows the tensors among the inputs have. Raises ShapeError if they do not agree."""
    counts = {len(it) for it in (*inputs, *named.values()) if isinstance(it, Tensor) and it.ndim}
    if len(counts) != 1 or 0 in counts:
        raise ShapeError(f"inputs of {sorted(counts)} rows; give tensors of the same number of rows, one or more")
    return counts.pop()


def _parts(
    inputs: tuple[Any, ...], named: dict[str, Any], rows: int, most: int | None
) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any]]]:
    """(first row, inputs, named inputs) of at most `most` rows each; what is no tensor goes to all."""
    if most is not None and most < 1:
        raise ConfigError(f"max_batch_size is {most}; it must be 1 or more")

    def cut(value: Any, start: int) -> Any:
        return value[start : start + (most or rows)] if isinstance(value, Tensor) and value.ndim else value

    for start in range(0, rows, most or rows):
        yield start, tuple(cut(it, start) for it in inputs), {name: cut(it, start) for name, it in named.items()}
