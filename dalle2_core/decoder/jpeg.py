"""What JPEG does to an image, without the file: blocks of 8 x 8 pixels, a cosine transform, and rounding.

ITU-T T.81: the transform is A.3.3, the tables are those of annex K.1, scaled by quality as libjpeg does; colours as
in JFIF; no subsampling of colours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg_like(images: Tensor, quality: int) -> Tensor:
    """[b, c, h, w] in [0, 1] → the same, as JPEG of that quality (1 to 100) leaves it.

    Three channels are taken as RGB; of any other number each is taken as grey.
    """
    channels, (height, width) = images.shape[1], images.shape[-2:]
    x = images * 255.0 - 128.0
    to_ycbcr = torch.tensor(_TO_YCBCR, device=x.device, dtype=x.dtype)
    if channels == 3:
        # Grey is 0 in all three after the shift: the rows of the other two sum to 0.
        x = torch.einsum("ij,bjhw->bihw", to_ycbcr, x)
    x = F.pad(x.round(), (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = x.reshape(*x.shape[:2], x.shape[2] // 8, 8, x.shape[3] // 8, 8).transpose(3, 4)
    transform = _cosines(x)
    table = _tables(channels, quality, x)
    spectrum = torch.round(transform @ blocks @ transform.T / table) * table
    x = (transform.T @ spectrum @ transform).transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
    if channels == 3:
        x = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycbcr), x)
    return ((x + 128.0) / 255.0).clamp(0.0, 1.0)


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 numbers, [8, 8]."""
    index = torch.arange(8, device=like.device, dtype=like.dtype)
    rows = torch.cos(math.pi / 8.0 * index[:, None] * (index + 0.5)) / 2.0
    rows[0] /= math.sqrt(2.0)
    return rows


def _tables(channels: int, quality: int, like: Tensor) -> Tensor:
    """Steps of rounding for each channel, [c, 1, 1, 8, 8]."""
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    luminance, colour = (torch.tensor(it, device=like.device, dtype=like.dtype) for it in (_LUMINANCE, _COLOUR))
    tables = torch.stack((luminance, colour, colour) if channels == 3 else (luminance,) * channels)
    return torch.floor((tables * percent + 50) / 100).clamp(1, 255)[:, None, None]
