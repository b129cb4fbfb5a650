"""dalle2_core: tensors in memory. The unCLIP prior and decoder, in pure torch.

The public names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle2_core.autoencoder import Autoencoder
    from dalle2_core.autoencoders import load_autoencoder
    from dalle2_core.conditions import DecoderBatch, DecoderCondition
    from dalle2_core.dalle2 import DALLE2
    from dalle2_core.decoder import Decoder
    from dalle2_core.decoders import load_decoder
    from dalle2_core.generation import GenerationConfig
    from dalle2_core.manipulations import interpolations, slerp, text_diff, text_diff_images, variations
    from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
    from dalle2_core.networks.unet import Unet
    from dalle2_core.own_clip import CLIP
    from dalle2_core.prior import DiffusionPrior
    from dalle2_core.priors import load_prior
    from dalle2_core.stage import DecoderStage
    from dalle2_core.stage_config import LowresConfig, StageConfig
    from dalle2_core.towers import OpenAIClipAdapter, OpenClipAdapter
    from dalle2_core.training.decoder_trainer import DecoderTrainer
    from dalle2_core.training.trainer import DiffusionPriorTrainer
    from dalle2_core.training.vae_training import VQGanVAETrainer
    from dalle2_core.types import EmbeddedText, PriorBatch
    from dalle2_core.vae import VQGanVAE

__all__ = [
    "CLIP",
    "DALLE2",
    "Autoencoder",
    "Decoder",
    "DecoderBatch",
    "DecoderCondition",
    "DecoderStage",
    "DecoderTrainer",
    "DiffusionPrior",
    "DiffusionPriorNetwork",
    "DiffusionPriorTrainer",
    "EmbeddedText",
    "GenerationConfig",
    "LowresConfig",
    "OpenAIClipAdapter",
    "OpenClipAdapter",
    "PriorBatch",
    "StageConfig",
    "Unet",
    "VQGanVAE",
    "VQGanVAETrainer",
    "interpolations",
    "load_autoencoder",
    "load_decoder",
    "load_prior",
    "slerp",
    "text_diff",
    "text_diff_images",
    "variations",
]

_HOMES = {
    "Autoencoder": "dalle2_core.autoencoder",
    "CLIP": "dalle2_core.own_clip",
    "DALLE2": "dalle2_core.dalle2",
    "Decoder": "dalle2_core.decoder",
    "DecoderBatch": "dalle2_core.conditions",
    "DecoderCondition": "dalle2_core.conditions",
    "DecoderStage": "dalle2_core.stage",
    "DecoderTrainer": "dalle2_core.training.decoder_trainer",
    "DiffusionPrior": "dalle2_core.prior",
    "DiffusionPriorNetwork": "dalle2_core.networks.prior_transformer",
    "DiffusionPriorTrainer": "dalle2_core.training.trainer",
    "EmbeddedText": "dalle2_core.types",
    "GenerationConfig": "dalle2_core.generation",
    "LowresConfig": "dalle2_core.stage_config",
    "OpenAIClipAdapter": "dalle2_core.towers",
    "OpenClipAdapter": "dalle2_core.towers",
    "PriorBatch": "dalle2_core.types",
    "StageConfig": "dalle2_core.stage_config",
    "Unet": "dalle2_core.networks.unet",
    "VQGanVAE": "dalle2_core.vae",
    "VQGanVAETrainer": "dalle2_core.training.vae_training",
    "interpolations": "dalle2_core.manipulations",
    "load_autoencoder": "dalle2_core.autoencoders",
    "load_decoder": "dalle2_core.decoders",
    "load_prior": "dalle2_core.priors",
    "slerp": "dalle2_core.manipulations",
    "text_diff": "dalle2_core.manipulations",
    "text_diff_images": "dalle2_core.manipulations",
    "variations": "dalle2_core.manipulations",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
