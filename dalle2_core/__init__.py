"""dalle2_core: tensors in memory. The unCLIP prior and decoder, in pure torch.

The public names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
    from dalle2_core.prior import DiffusionPrior
    from dalle2_core.priors import load_prior
    from dalle2_core.towers import CLIP, OpenClipAdapter
    from dalle2_core.training.trainer import DiffusionPriorTrainer
    from dalle2_core.types import PriorBatch

__all__ = [
    "CLIP",
    "DiffusionPrior",
    "DiffusionPriorNetwork",
    "DiffusionPriorTrainer",
    "OpenClipAdapter",
    "PriorBatch",
    "load_prior",
]

_HOMES = {
    "CLIP": "dalle2_core.towers",
    "DiffusionPrior": "dalle2_core.prior",
    "DiffusionPriorNetwork": "dalle2_core.networks.prior_transformer",
    "DiffusionPriorTrainer": "dalle2_core.training.trainer",
    "OpenClipAdapter": "dalle2_core.towers",
    "PriorBatch": "dalle2_core.types",
    "load_prior": "dalle2_core.priors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
