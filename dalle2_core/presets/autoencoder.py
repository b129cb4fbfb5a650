"""Named, complete configurations of an autoencoder to train. All values are plain JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from dalle2_core.keywords import chosen
from dalle2_core.networks.vqgan_config import VaeConfig
from dalle2_core.presets import VAE_PRESETS
from dalle2_core.training.loop import TrainConfig
from dalle2_core.training.optim import OptimConfig


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """Everything an autoencoder's training is told, besides the data and the weights of a perceptual loss."""

    vae: VaeConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def tiny() -> VaeRecipe:
    """Some thousand pictures of 64 pixels on a CPU: latents of 4 channels and 16 pixels, no discriminator."""
    return VaeRecipe(
        vae=VaeConfig(
            dim=32,
            image_size=64,
            layers=2,
            layer_mults=(1, 2),
            num_resnet_blocks=(1, 1),
            use_attn=False,
            vq_codebook_dim=4,
            vq_codebook_size=512,
            vq_decay=0.99,
            vq_commitment_weight=0.25,
            vq_use_cosine_sim=False,
            use_vgg_and_gan=False,
        ),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0, warmup_steps=20),
        train=TrainConfig(
            steps=600,
            batch_size=16,
            log_every=20,
            evaluate_every=100,
            save_every=100,
            ema_decay=0.99,
            best_metric="reconstruction",
        ),
    )


def base() -> VaeRecipe:
    """256 pixels to latents of 4 channels and 32 pixels, as Rombach et al. 2112.10752 (table 8, VQ, f = 8)."""
    return VaeRecipe(
        vae=VaeConfig(
            dim=128,
            image_size=256,
            layers=3,
            layer_mults=(1, 2, 4),
            num_resnet_blocks=(2, 2, 2),
            vq_codebook_dim=4,
            vq_codebook_size=16384,
            vq_decay=0.99,
            vq_commitment_weight=0.25,
            vq_use_cosine_sim=False,
            discr_layers=3,
            discr_start_step=20_000,
        ),
        optim=OptimConfig(lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=1000),
        train=TrainConfig(
            steps=500_000,
            batch_size=64,
            log_every=100,
            evaluate_every=5000,
            save_every=5000,
            ema_decay=0.9999,
            best_metric="reconstruction",
        ),
    )


def vae_preset(name: str) -> VaeRecipe:
    """The recipe of that name. Raises ConfigError naming the near ones."""
    return chosen(VAE_PRESETS, name, "preset of an autoencoder")()
