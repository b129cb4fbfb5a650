"""DiffusionPriorTrainer: one's own loop around the same parts as `train`, by DALLE2-pytorch's names.

trainer = DiffusionPriorTrainer(diffusion_prior, lr=3e-4, wd=1e-2, ema_beta=0.99)
loss = trainer(text_embed=text, image_embed=image, max_batch_size=64)   # forward and backward
trainer.update()                                                        # optimizer, schedule, average
trainer.sample(text)                                                    # of the averaged prior
trainer.save("checkpoint"); trainer.load("checkpoint")
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import from_keywords
from dalle2_core.rng import PerSampleRNG
from dalle2_core.training.checkpoint import read_checkpoint, write_checkpoint
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.manual_stepping import ManualStepper, TrainerConfig, cut, parts, rows_in


class DiffusionPriorTrainer(nn.Module):
    """Optimizer, schedule and moving average around a prior.

    `trainer(…)` takes what the prior's forward pass takes, adds to its gradients and returns the loss; the gradients of
    several calls before an `update()` add up. Under torchrun every process calls it with as many rows of its own, and
    together they train as one that is given all rows.
    """

    def __init__(self, diffusion_prior: nn.Module, accelerator: Any = None, **keywords: Any) -> None:
        """accelerator: an accelerate.Accelerator; None finds out by itself. keywords: the fields of TrainerConfig.

        An unknown keyword is a TypeError that names the near ones.
        """
        super().__init__()
        self.config = from_keywords(TrainerConfig, "DiffusionPriorTrainer", keywords)
        self.diffusion_prior = diffusion_prior
        self.device = next(diffusion_prior.parameters()).device
        self._together = Processes(accelerator) if accelerator is not None else join_processes(self.device)
        self._stepper = ManualStepper(diffusion_prior, diffusion_prior, self.config, self._together)

    @property
    def step(self) -> int:
        """Updates done."""
        return self._stepper.state.step

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the prior's parameters."""
        return self._stepper.state.optimizer

    @property
    def ema_diffusion_prior(self) -> nn.Module:
        """The averaged prior; the prior itself with use_ema=False."""
        return self._stepper.state.averaged

    def forward(self, *inputs: Any, max_batch_size: int | None = None, **named: Any) -> float:
        """The loss, the mean over the rows; in training mode, its gradients are added to the parameters'.

        inputs, named: as the prior's forward pass takes them. max_batch_size: rows taken at once, for want of memory;
        it changes the result by rounding only (and the masks of dropout). Raises NonFiniteLoss.
        """

        def loss_of(prior: nn.Module, start: int, stop: int, draws: PerSampleRNG) -> Tensor:
            some = {name: cut(it, start, stop) for name, it in named.items()}
            loss: Tensor = prior(*(cut(it, start, stop) for it in inputs), **some, generator=draws)
            return loss

        return self._stepper.add(rows_in(inputs, named), max_batch_size, loss_of, training=self.training)

    def update(self) -> None:
        """One step of the optimizer, then of the average; gradients are cleared. Raises NonFiniteLoss."""
        self._stepper.update()

    @torch.no_grad()
    def sample(self, *inputs: Any, max_batch_size: int | None = None, **named: Any) -> Tensor:
        """Image embeddings of the averaged prior, as its `sample` gives them. max_batch_size: rows taken at once."""
        made = []
        for start, stop in parts(rows_in(inputs, named), max_batch_size):
            some = {name: cut(it, start, stop) for name, it in named.items()}
            made.append(self.ema_diffusion_prior.sample(*(cut(it, start, stop) for it in inputs), **some))  # type: ignore[operator]
        return torch.cat(made)

    def save(self, path: Path | str, overwrite: bool = True) -> None:
        """Write everything that `load` needs as a folder of safetensors and JSON, whole. The first process writes.

        Raises CheckpointError if the disk refuses, or the folder is there and overwrite is False.
        """
        if self._together.is_first:
            if not overwrite and Path(path).exists():
                raise ConfigError(f"{path}: is there already; give another path, or overwrite=True")
            write_checkpoint(Path(path), self._stepper.state, {"trainer": asdict(self.config)})
        self._together.wait()

    def load(self, path: Path | str) -> None:
        """Go on from what `save` wrote. Raises CheckpointError if it is not whole, or of another prior."""
        content, tensors = read_checkpoint(Path(path))
        self._stepper.load(tensors, content["numbers"])
