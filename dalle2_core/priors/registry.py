"""Every prior by its name, for `train-prior --prior NAME` and for loading a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dalle2_core.errors import CheckpointError
from dalle2_core.keywords import Registry

if TYPE_CHECKING:
    import torch

    from dalle2_core.priors.base import Prior

PRIORS: Registry[type[Prior]] = Registry(
    {
        "diffusion": "dalle2_core.priors.diffusion:DiffusionPrior",
        "autoregressive": "dalle2_core.priors.autoregressive:AutoregressivePrior",
        "contrastive": "dalle2_core.priors.contrastive:ContrastivePrior",
        "unclip": "dalle2_core.priors.unclip:UnclipPrior",
        "ridge": "dalle2_core.priors.closed_form:Ridge",
        "mean": "dalle2_core.priors.closed_form:MeanImage",
    }
)


ADAPTED = "adapted-prior"  # adapters of a prior that lies elsewhere, see `dalle2_core.priors.lora`


def load_prior(folder: Path | str, device: torch.device | str = "cpu") -> Prior:
    """The prior in a folder, of whatever kind config.json names; one with adapters is whole.

    Raises CheckpointError if there is none.
    """
    from dalle2_core.serialization import read_kind

    kind = read_kind(folder)
    if kind == ADAPTED:
        from dalle2_core.priors.lora import load_adapted

        return load_adapted(folder, device)
    for prior in PRIORS.values():
        if kind == prior.KIND:
            return prior.load(folder, device)
    known = ", ".join(sorted(prior.KIND for prior in PRIORS.values()))
    raise CheckpointError(f"{folder}: holds a {kind!r}, which is no prior; known: {known}")
