"""A small VQGanVAE for tests."""

import torch

from dalle2_core.autoencoders.vqgan import VQGanVAE

SMALL = {"dim": 8, "image_size": 16, "layers": 2, "layer_mults": (1, 2), "resnet_groups": 4, "attn_heads": 2,
         "attn_dim_head": 4, "vq_codebook_dim": 4, "vq_codebook_size": 16, "discr_layers": 2}  # fmt: skip


def vae(seed=0, **keywords):
    """Halves sides twice; latents of 4 channels."""
    torch.manual_seed(seed)
    return VQGanVAE(**{**SMALL, **keywords})


def pictures(rows=6, size=16, seed=0, channels=3):
    """Images in [0, 1]: smooth, so that there is something to learn."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, channels, 4, 4, generator=draw)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
