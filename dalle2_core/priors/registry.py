"""Every prior by its name: what `train-prior --prior NAME` can make, and what a run's folder can hold."""

from __future__ import annotations

from pathlib import Path

import torch

from dalle2_core.errors import CheckpointError
from dalle2_core.priors.autoregressive import AutoregressivePrior
from dalle2_core.priors.base import Prior
from dalle2_core.priors.closed_form import MeanImage, Ridge
from dalle2_core.priors.contrastive import ContrastivePrior
from dalle2_core.priors.diffusion import DiffusionPrior
from dalle2_core.serialization import read_kind

PRIORS: dict[str, type[Prior]] = {
    "diffusion": DiffusionPrior,
    "autoregressive": AutoregressivePrior,
    "contrastive": ContrastivePrior,
    "ridge": Ridge,
    "mean": MeanImage,
}


def load_prior(folder: Path | str, device: torch.device | str = "cpu") -> Prior:
    """The prior in a folder, of whatever kind config.json names. Raises CheckpointError if there is none."""
    kind = read_kind(folder)
    for prior in PRIORS.values():
        if kind == prior.KIND:
            return prior.load(folder, device)
    known = ", ".join(sorted(prior.KIND for prior in PRIORS.values()))
    raise CheckpointError(f"{folder}: holds a {kind!r}, which is no prior; known: {known}")
