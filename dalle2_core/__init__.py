"""dalle2_core: tensors in memory. The unCLIP prior and decoder, in pure torch.

The public names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle2_core.autoencoders.base import Autoencoder
    from dalle2_core.autoencoders.registry import load_autoencoder
    from dalle2_core.autoencoders.vqgan import VQGanVAE
    from dalle2_core.clip.adapters import OpenAIClipAdapter, OpenClipAdapter
    from dalle2_core.clip.x_clip import CLIP
    from dalle2_core.conditioning import DecoderBatch, DecoderCondition
    from dalle2_core.dalle2 import DALLE2
    from dalle2_core.decoder.decoder import Decoder
    from dalle2_core.decoder.loading import load_decoder
    from dalle2_core.decoder.manipulations import interpolations, slerp, text_diff, text_diff_images, variations
    from dalle2_core.decoder.stage import DecoderStage
    from dalle2_core.decoder.stage_config import LowresConfig, StageConfig
    from dalle2_core.generation import GenerationConfig
    from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
    from dalle2_core.networks.unet import Unet
    from dalle2_core.priors.diffusion import DiffusionPrior
    from dalle2_core.priors.registry import load_prior
    from dalle2_core.training.decoder_trainer import DecoderTrainer
    from dalle2_core.training.prior_trainer import DiffusionPriorTrainer
    from dalle2_core.training.vqgan_trainer import VQGanVAETrainer
    from dalle2_core.types import EmbeddedText, PriorBatch

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
    "Autoencoder": "dalle2_core.autoencoders.base",
    "CLIP": "dalle2_core.clip.x_clip",
    "DALLE2": "dalle2_core.dalle2",
    "Decoder": "dalle2_core.decoder.decoder",
    "DecoderBatch": "dalle2_core.conditioning",
    "DecoderCondition": "dalle2_core.conditioning",
    "DecoderStage": "dalle2_core.decoder.stage",
    "DecoderTrainer": "dalle2_core.training.decoder_trainer",
    "DiffusionPrior": "dalle2_core.priors.diffusion",
    "DiffusionPriorNetwork": "dalle2_core.networks.prior_transformer",
    "DiffusionPriorTrainer": "dalle2_core.training.prior_trainer",
    "EmbeddedText": "dalle2_core.types",
    "GenerationConfig": "dalle2_core.generation",
    "LowresConfig": "dalle2_core.decoder.stage_config",
    "OpenAIClipAdapter": "dalle2_core.clip.adapters",
    "OpenClipAdapter": "dalle2_core.clip.adapters",
    "PriorBatch": "dalle2_core.types",
    "StageConfig": "dalle2_core.decoder.stage_config",
    "Unet": "dalle2_core.networks.unet",
    "VQGanVAE": "dalle2_core.autoencoders.vqgan",
    "VQGanVAETrainer": "dalle2_core.training.vqgan_trainer",
    "interpolations": "dalle2_core.decoder.manipulations",
    "load_autoencoder": "dalle2_core.autoencoders.registry",
    "load_decoder": "dalle2_core.decoder.loading",
    "load_prior": "dalle2_core.priors.registry",
    "slerp": "dalle2_core.decoder.manipulations",
    "text_diff": "dalle2_core.decoder.manipulations",
    "text_diff_images": "dalle2_core.decoder.manipulations",
    "variations": "dalle2_core.decoder.manipulations",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
