"""Encoder, decoder and discriminator of a VQGAN (Esser et al. 2012.09841). All take and give [b, c, h, w]."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from dalle2_core.networks.image_attention import SelfAttention
from dalle2_core.networks.unet_blocks import Block, NearestUpsample
from dalle2_core.networks.vqgan_config import VaeConfig


class ResidualBlock(nn.Module):
    """Two blocks and a convolution of single pixels, added to the input."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.block1 = Block(dim, dim, groups)
        self.block2 = Block(dim, dim, groups)
        self.project = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.project(self.block2(self.block1(x)))
        return out


def vqgan_encoder(config: VaeConfig) -> nn.Sequential:
    """Images → latents of `vq_codebook_dim` channels, sides `downsampling` times smaller."""
    kernel = config.first_conv_kernel_size
    parts: list[nn.Module] = [nn.Conv2d(config.channels, config.dim, kernel, padding=kernel // 2)]
    for layer, (dim, dim_out) in enumerate(pairwise(config.widths)):
        parts += [nn.Conv2d(dim, dim_out, 4, stride=2, padding=1), nn.SiLU()]
        parts += _at_resolution(config, layer, dim_out)
    return nn.Sequential(*parts, nn.Conv2d(config.widths[-1], config.vq_codebook_dim, 1))


def vqgan_decoder(config: VaeConfig) -> nn.Sequential:
    """Latents → images. Its last convolution is [-1]."""
    parts: list[nn.Module] = [nn.Conv2d(config.vq_codebook_dim, config.widths[-1], 1)]
    for layer, (dim, dim_out) in reversed(list(enumerate(pairwise(config.widths)))):
        parts += reversed(_at_resolution(config, layer, dim_out))
        # Repeated pixels and a convolution: transposed convolutions leave checkerboards (Odena et al. 2016).
        parts += [NearestUpsample(dim_out, dim), nn.SiLU()]
    return nn.Sequential(*parts, nn.Conv2d(config.dim, config.channels, 3, padding=1))


def _at_resolution(config: VaeConfig, layer: int, dim: int) -> list[nn.Module]:
    parts: list[nn.Module] = [ResidualBlock(dim, config.resnet_groups) for _ in range(config.blocks_by_layer[layer])]
    if config.attention_by_layer[layer]:
        heads, dim_head, dropout = config.attn_heads, config.attn_dim_head, config.attn_dropout
        parts.append(SelfAttention(dim, heads, dim_head, cosine_sim=False, dropout=dropout))
    return parts


class Discriminator(nn.Module):
    """How real each patch of an image looks. Isola et al. 1611.07004, section 3.2.2.

    It has no layer that cannot be differentiated twice: gradient penalties do.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.discriminator_widths
        parts: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 5, padding=2), nn.LeakyReLU(0.1)]
        for dim, dim_out in pairwise(widths):
            parts += [
                nn.Conv2d(dim, dim_out, 4, stride=2, padding=1),
                nn.GroupNorm(config.resnet_groups, dim_out),
                nn.LeakyReLU(0.1),
            ]
        last = widths[-1]
        self.layers = nn.Sequential(*parts, nn.Conv2d(last, last, 1), nn.LeakyReLU(0.1))
        self.to_logits = nn.Conv2d(last, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[b, c, h, w] → [b, h', w'] logits, high where it looks real."""
        logits: Tensor = self.to_logits(self.layers(images))
        return logits[:, 0]

    def judged(self, images: Tensor) -> Tensor:
        """As the forward pass; gradients reach the images and not the weights."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        logits: Tensor = torch.func.functional_call(self, weights, (images,))
        return logits
