"""Corrupt the low-resolution conditioning so that the upsampler tolerates the previous stage's artefacts.

Ramesh et al. 2204.06125, section 2.1: Gaussian blur for the first upsampler (as in Ho et al. 2106.15282, section 4),
and for the last the more diverse degradation of Rombach et al. 2112.10752, after Zhang et al. 2103.14006 (BSR).
All take and give [b, c, h, w] in [0, 1]; every draw comes from `draws`; each row is corrupted on its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.decoder.jpeg import jpeg_like
from dalle2_core.images import resized
from dalle2_core.rng import RNG, normal, uniform

# BSR, in its light form: at a small image's size more would leave nothing to be restored.
_BSR_SIGMA = (0.2, 1.6)  # of the blur, pixels
_BSR_SHRINK = (0.6, 1.0)
_BSR_NOISE = (1 / 255, 12 / 255)
_BSR_QUALITY = (40, 95)  # of JPEG


def gaussian_blur(images: Tensor, sigma: Tensor, size: Tensor | int, largest: int | None = None) -> Tensor:
    """Blur each row with its own deviation and kernel.

    sigma: [b] pixels, or [b, 2] for height and width. size: [b] odd numbers of pixels, or one for all rows. largest:
    of the sizes, where the caller knows it: the host would wait for a GPU to tell.
    """
    rows, channels, height, width = images.shape
    sigma = sigma.to(images).view(rows, -1).expand(rows, 2)
    sizes = torch.as_tensor(size, device=images.device).expand(rows)
    edge = (int(sizes.max()) if largest is None else largest) // 2
    offset = torch.arange(-edge, edge + 1, device=images.device, dtype=images.dtype)
    line = torch.exp(-0.5 * (offset / sigma[:, :, None]) ** 2) * (offset.abs() <= sizes[:, None, None] // 2)
    line = line / line.sum(dim=2, keepdim=True)
    kernel = (line[:, 0, :, None] * line[:, 1, None, :]).repeat_interleave(channels, dim=0)[:, None]
    # Every channel of every row is a group with a kernel of its own.
    padded = F.pad(images, (edge, edge, edge, edge), mode="replicate").flatten(0, 1)[None]
    return F.conv2d(padded, kernel, groups=rows * channels).view(rows, channels, height, width)


def sometimes_blurred(
    images: Tensor, probability: float, sigma: tuple[float, float], size: tuple[int, int], draws: RNG
) -> Tensor:
    """Each row blurred with `probability`; its sigma (pixels) and its kernel's size are drawn from their ranges."""
    drawn = uniform((len(images), 3), draws, images.device)
    smallest, largest = size
    sizes = smallest + 2 * (drawn[:, 2] * ((largest - smallest) // 2 + 1)).long()
    blurred = gaussian_blur(images, sigma[0] + (sigma[1] - sigma[0]) * drawn[:, 1], sizes, largest)
    return torch.where(drawn[:, 0, None, None, None] < probability, blurred, images)


def bsr(images: Tensor, draws: RNG) -> Tensor:
    """Blur, shrinking, noise and JPEG, in an order drawn for each row; JPEG once more at the end."""
    drawn = uniform((len(images), 8), draws, images.device)
    noise = normal(images.shape, draws, images.device, images.dtype)
    rows = [_bsr_row(images[i : i + 1], noise[i : i + 1], draw) for i, draw in enumerate(drawn.tolist())]
    return torch.cat(rows)


def _bsr_row(image: Tensor, noise: Tensor, draw: list[float]) -> Tensor:
    size = image.shape[-1]

    def blurred(x: Tensor) -> Tensor:
        sigmas = x.new_tensor([[_between(_BSR_SIGMA, draw[0]), _between(_BSR_SIGMA, draw[1])]])
        return gaussian_blur(x, sigmas, 7) if size > 7 else x

    def shrunk(x: Tensor) -> Tensor:
        return resized(resized(x, max(1, round(size * _between(_BSR_SHRINK, draw[2])))), size)

    def noisy(x: Tensor) -> Tensor:
        # One draw in two is the same in all channels: grey grain.
        grain = noise if draw[4] < 0.5 else noise[:, :1].expand_as(noise)
        return (x + _between(_BSR_NOISE, draw[3]) * grain).clamp(0.0, 1.0)

    def compressed(x: Tensor) -> Tensor:
        return jpeg_like(x, round(_between(_BSR_QUALITY, draw[5])))

    steps = [blurred, shrunk, noisy, compressed]
    # One of the 4! orders, read off digit by digit.
    turn = int(draw[6] * 24)
    for left in range(len(steps), 0, -1):
        turn, index = divmod(turn, left)
        image = steps.pop(index)(image)
    return jpeg_like(image, round(_between(_BSR_QUALITY, draw[7])))


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share
