"""DiffusionPriorTrainer: one's own loop around the same parts as `train`, by DALLE2-pytorch's names.

trainer = DiffusionPriorTrainer(diffusion_prior, lr=3e-4, wd=1e-2, ema_beta=0.99)
loss = trainer(text_embed=text, image_embed=image, max_batch_size=64)   # forward and backward
trainer.update()                                                        # optimizer, schedule, average
trainer.sample(text)                                                    # of the averaged prior
trainer.save("checkpoint"); trainer.load("checkpoint")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import from_keywords
from dalle2_core.rng import PerSampleRNG
from dalle2_core.training.checkpoint import (
    is_checkpoint_file,
    read_checkpoint,
    refuse_to_replace,
    require_folder,
    write_checkpoint,
)
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.manual_stepping import ManualStepper, TrainerConfig, cut, parts, prepared, rows_in
from dalle2_core.types import EmbeddedText


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

        inputs, named = self._prepared(inputs, named)

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
        inputs, named = self._prepared(inputs, named)
        made = []
        for start, stop in parts(rows_in(inputs, named), max_batch_size):
            some = {name: cut(it, start, stop) for name, it in named.items()}
            made.append(self.ema_diffusion_prior.sample(*(cut(it, start, stop) for it in inputs), **some))  # type: ignore[operator]
        return torch.cat(made)

    @torch.no_grad()
    def embed_text(self, text: Tensor) -> EmbeddedText:
        """What the prior's clip makes of integer tokens [b, l]. Raises ConfigError if it has none."""
        clip = getattr(self.diffusion_prior, "clip", None)
        if clip is None:
            raise ConfigError("this prior was made without a clip to embed texts; make it with clip=…")
        embedded: EmbeddedText = clip.embed_text(prepared(text, "text", self.device))
        return embedded

    def _prepared(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = tuple(prepared(it, f"input {place}", self.device) for place, it in enumerate(inputs, 1))
        return inputs, {name: prepared(it, name, self.device) for name, it in named.items()}

    def save(self, path: Path | str, overwrite: bool = True, **extra: Any) -> None:
        """Write everything that `load` needs as a folder of safetensors and JSON, whole. The first process writes.

        overwrite: replace a checkpoint of this kind at `path`; whatever else is there is never touched. extra: plain
        JSON values of one's own, which `load` returns. Raises CheckpointError if the disk refuses or something else
        lies at `path`, ConfigError if a checkpoint does and overwrite is False.
        """
        path = Path(path)
        if self._together.is_first:
            if not overwrite and path.exists():
                raise ConfigError(f"{path}: is there already; give another path, or overwrite=True")
            refuse_to_replace(path, is_checkpoint_file, "a checkpoint of a DiffusionPriorTrainer")
            write_checkpoint(path, self._stepper.state, self._stepper.identity(**extra))
        self._together.wait()

    def load(self, path: Path | str, overwrite_lr: bool = True, strict: bool = True) -> dict[str, Any]:
        """Go on from what `save` wrote; returns the `extra` that was saved.

        overwrite_lr: keep this trainer's learning rate; False takes the saved one. strict: settings, names and shapes
        must all be this prior's; False loads the tensors that fit. Raises CheckpointError if it is not whole,
        AnotherRun if the prior had other settings.
        """
        path = Path(path)
        require_folder(path, "a trainer's checkpoint")
        found = read_checkpoint(path)
        self._stepper.load(path, found, only_model=False, strict=strict, overwrite_lr=overwrite_lr)
        return dict(found[0]["identity"].get("extra", {}))
