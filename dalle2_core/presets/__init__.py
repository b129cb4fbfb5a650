"""Named, complete configurations of priors, decoders, CLIP models and autoencoders. All values are plain JSON.

The names are there without the models: each preset is imported when it is looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dalle2_core.keywords import Registry

if TYPE_CHECKING:
    from dalle2_core.presets.autoencoder import VaeRecipe
    from dalle2_core.presets.clip import ClipRecipe
    from dalle2_core.presets.decoder import DecoderRecipe
    from dalle2_core.presets.prior import PriorRecipe

PRIOR_PRESETS: Registry[Callable[[], PriorRecipe]] = Registry(
    {
        "tiny": "dalle2_core.presets.prior:tiny",
        "base": "dalle2_core.presets.prior:base",
        "laion-l14": "dalle2_core.presets.prior:laion_l14",
        "paper": "dalle2_core.presets.prior:paper",
        "kandinsky-2-2": "dalle2_core.presets.prior:kandinsky_2_2",
        "karlo": "dalle2_core.presets.prior:karlo",
    }
)
DECODER_PRESETS: Registry[Callable[[], DecoderRecipe]] = Registry(
    {
        "quick": "dalle2_core.presets.decoder:quick",
        "tiny": "dalle2_core.presets.decoder:tiny",
        "tiny-latent": "dalle2_core.presets.decoder:tiny_latent",
        "base": "dalle2_core.presets.decoder:base",
        "paper": "dalle2_core.presets.decoder:paper",
    }
)
CLIP_PRESETS: Registry[Callable[[], ClipRecipe]] = Registry(
    {"lite0": "dalle2_core.presets.clip:lite0", "vit-tiny": "dalle2_core.presets.clip:vit_tiny"}
)
VAE_PRESETS: Registry[Callable[[], VaeRecipe]] = Registry(
    {"tiny": "dalle2_core.presets.autoencoder:tiny", "base": "dalle2_core.presets.autoencoder:base"}
)

__all__ = ["CLIP_PRESETS", "DECODER_PRESETS", "PRIOR_PRESETS", "VAE_PRESETS"]
