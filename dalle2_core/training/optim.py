"""AdamW, its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen

_SCHEDULES = ("constant", "cosine", "cooldown")


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW and its schedule.

    lr: the highest learning rate, reached after the warm-up.
    betas, eps: Adam's. The unCLIP paper trains its diffusion prior with beta2 0.96 and eps 1e-6 (table 3).
    weight_decay: decoupled, per unit of learning rate. decay_matrices_only: not on gains, biases and embeddings.
    warmup_steps: steps over which the rate rises linearly from lr / warmup_steps.
    schedule: after the warm-up, "constant", a half "cosine" down to lr * final_lr_fraction at the last step, or a
    "cooldown": constant, then down to there in a straight line over the last `cooldown_fraction` of the steps
    (Hägele et al. 2405.18392).
    max_grad_norm: gradients are scaled down to this L2 norm over all parameters; None leaves them alone.
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    decay_matrices_only: bool = True
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "cooldown"] = "constant"
    final_lr_fraction: float = 0.0
    max_grad_norm: float | None = 1.0
    cooldown_fraction: float = 0.4

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optim.lr is {self.lr}; it must be above 0")
        chosen(dict.fromkeys(_SCHEDULES), self.schedule, "learning-rate schedule")
        if not 0 < self.cooldown_fraction <= 1:
            raise ConfigError(f"optim.cooldown_fraction is {self.cooldown_fraction}; above 0, at most 1")
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ConfigError(f"optim.max_grad_norm is {self.max_grad_norm}; above 0, or None for no limit")


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The rate used by step `step`, counted from 1 to `total_steps`."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    else:
        left = max(0.0, min(1.0, (total_steps - step) / (config.cooldown_fraction * total_steps)))
    return config.lr * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient, in two groups: decayed and not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = sum(size > 1 for size in parameter.shape) >= 2 and id(parameter) not in embeddings
            (decayed if is_matrix or not config.decay_matrices_only else undecayed).append(parameter)
    if not decayed and not undecayed:
        raise ConfigError("the model has no parameter that requires a gradient; nothing can be trained")
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,  # One call for all parameters: half the time of a small model's step on a CPU.
    )
