"""Trainings, their evaluation and what they generate: one call for each command. The only part that knows dalle2_core.

Names are loaded when they are first used. `evaluate`, `generate`, `sample_prior` and `convert` are modules that can be
called, see `embedpipe.callable_package`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generate.job import plan_generation
    from .sample_prior import SamplingConfig, plan_sampling
    from .train.autoencoder import plan_train_vae, train_vae
    from .train.clip import plan_train_clip, train_clip
    from .train.decoder import plan_train_decoder, train_decoder
    from .train.prior import plan_train_all_priors, plan_train_prior, train_all_priors, train_prior

_HOMES = {
    "SamplingConfig": "sample_prior",
    "plan_generation": "generate.job",
    "plan_sampling": "sample_prior",
    "plan_train_all_priors": "train.prior",
    "plan_train_clip": "train.clip",
    "plan_train_decoder": "train.decoder",
    "plan_train_prior": "train.prior",
    "plan_train_vae": "train.autoencoder",
    "train_all_priors": "train.prior",
    "train_clip": "train.clip",
    "train_decoder": "train.decoder",
    "train_prior": "train.prior",
    "train_vae": "train.autoencoder",
}
_ROOMS = ("convert", "evaluate", "generate", "sample_prior")

__all__ = [
    "SamplingConfig",
    "plan_generation",
    "plan_sampling",
    "plan_train_all_priors",
    "plan_train_clip",
    "plan_train_decoder",
    "plan_train_prior",
    "plan_train_vae",
    "train_all_priors",
    "train_clip",
    "train_decoder",
    "train_prior",
    "train_vae",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
