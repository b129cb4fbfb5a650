"""Weights & Biases. Project, entity and mode are wandb's own variables: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from dalle2_core.training.loggers.base import Logger, required


class WandbLogger(Logger):
    """One wandb run for each run folder: a resumed training goes on in it."""

    def __init__(self, folder: Path, last_step: int) -> None:
        wandb = required("wandb", "wandb", "wandb")
        where = folder.resolve()
        self._run = wandb.init(
            dir=str(folder),
            name=folder.name,
            id=hashlib.sha256(str(where).encode()).hexdigest()[:16],
            resume="allow",
        )
        # wandb's own step only rises; after a kill ours begins again a little earlier.
        self._run.define_metric("*", step_metric="optimizer_step")

    def write(self, kind: str, step: int, samples: int, numbers: Mapping[str, float]) -> None:
        """See `Logger`."""
        finite = {f"{kind}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
        self._run.log({**finite, "optimizer_step": step, "samples": samples})

    def close(self) -> None:
        """See `Logger`."""
        self._run.finish()
