"""Manipulations of images by the decoder: variations, interpolations, text diffs. Ramesh et al. 2204.06125, section 3.

An image is its embedding and the noise x_T from which ddim makes it (`Decoder.invert`); here are the functions of
embeddings, and the three uses of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core.decoder.decoder import Decoder
from dalle2_core.errors import ConfigError, ShapeError


def slerp(one: Tensor, other: Tensor, share: Tensor | float) -> Tensor:
    """Along the great circle from `one` (share 0) to `other` (share 1), [..., d]; lengths go over evenly.

    Shoemake 1985. share: a number, or a tensor that broadcasts to [..., 1]. Between opposite vectors every way is
    as short; there, and between equal ones, the straight line is taken.
    """
    length_one, length_other = one.norm(dim=-1, keepdim=True), other.norm(dim=-1, keepdim=True)
    share = torch.as_tensor(share, dtype=one.dtype, device=one.device)
    direction_one, direction_other = F.normalize(one, dim=-1), F.normalize(other, dim=-1)
    angle = torch.acos((direction_one * direction_other).sum(dim=-1, keepdim=True).clamp(-1.0, 1.0))
    straight = (1.0 - share) * direction_one + share * direction_other
    sine = angle.sin()
    turned = (((1.0 - share) * angle).sin() * direction_one + (share * angle).sin() * direction_other) / sine
    direction = torch.where(sine > 1e-4, turned, straight)
    out: Tensor = direction * ((1.0 - share) * length_one + share * length_other)
    return out


def text_diff(image_embed: Tensor, text_embed: Tensor, base_text_embed: Tensor, shares: Sequence[float]) -> Tensor:
    """Embeddings [len(shares), d] on the way from an image's [d] towards the direction from one text to another.

    Section 3.3: the direction is norm(text - base text), and the paper takes shares up to between 0.25 and 0.5.
    base_text_embed: that of a caption of the image, or of an empty one. Raises ShapeError if the texts are alike.
    """
    apart = text_embed - base_text_embed
    if float(apart.norm()) < 1e-6:
        raise ShapeError("text_embed and base_text_embed are alike; there is no direction between them")
    return _walk(image_embed, F.normalize(apart, dim=-1), shares)


def variations(
    decoder: Decoder,
    image: Tensor,
    image_embed: Tensor,
    count: int,
    *,
    eta: float = 1.0,
    steps: int | None = None,
    text_encodings: Tensor | None = None,
    text_mask: Tensor | None = None,
    **sampling: Any,
) -> Tensor:
    """`count` images [count, c, h, w] that share an image's [c, h, w] content and style, not its details.

    Section 3.1: the same embedding [d] and x_T, and ddim with noise. eta: 0 gives the image back, as nearly as the
    first stage can make it; the more noise, the farther away. steps: of the first stage; more invert more
    exactly. text_encodings [1, l, t], text_mask [1, l]: the text, for a decoder conditioned on one. sampling:
    for `Decoder.sample`.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; ask for 1 variation or more")
    text = _Text(text_encodings, text_mask)
    noise = decoder.invert(image[None], image_embed[None], steps=steps, **text.times(1))
    embeds = image_embed.expand(count, -1)
    return _from_noise(decoder, embeds, noise.expand(count, -1, -1, -1), steps, eta, text, sampling)


def interpolations(
    decoder: Decoder,
    images: tuple[Tensor, Tensor],
    image_embeds: tuple[Tensor, Tensor],
    shares: Sequence[float],
    *,
    steps: int | None = None,
    text_encodings: Tensor | None = None,
    text_mask: Tensor | None = None,
    **sampling: Any,
) -> Tensor:
    """Images [len(shares), c, h, w] on the way from one [c, h, w] (share 0) to another (share 1).

    Section 3.2: embeddings [d] and noises both go along great circles, so that the ends are the two images.
    text_encodings, text_mask: as for `variations`.
    """
    text = _Text(text_encodings, text_mask)
    noises = decoder.invert(torch.stack(images), torch.stack(image_embeds), steps=steps, **text.times(2))
    flat = _walk(noises[0].flatten(), noises[1].flatten(), shares)
    embeds = _walk(*image_embeds, shares)
    return _from_noise(decoder, embeds, flat.view(len(shares), *noises.shape[1:]), steps, 0.0, text, sampling)


def text_diff_images(
    decoder: Decoder,
    image: Tensor,
    image_embed: Tensor,
    text_embed: Tensor,
    base_text_embed: Tensor,
    shares: Sequence[float],
    *,
    steps: int | None = None,
    text_encodings: Tensor | None = None,
    text_mask: Tensor | None = None,
    **sampling: Any,
) -> Tensor:
    """Images [len(shares), c, h, w] from an image [c, h, w] towards a text. Section 3.3: x_T stays the image's.

    text_encodings, text_mask: as for `variations`.
    """
    embeds = text_diff(image_embed, text_embed, base_text_embed, shares)
    text = _Text(text_encodings, text_mask)
    noise = decoder.invert(image[None], image_embed[None], steps=steps, **text.times(1))
    return _from_noise(decoder, embeds, noise.expand(len(shares), -1, -1, -1), steps, 0.0, text, sampling)


@dataclass(frozen=True, slots=True)
class _Text:
    """The one text of all images of a walk, [1, l, t] and [1, l], or none."""

    encodings: Tensor | None
    mask: Tensor | None

    def times(self, rows: int) -> dict[str, Any]:
        """As the decoder takes it, for so many images."""
        return {
            "text_encodings": None if self.encodings is None else self.encodings.expand(rows, -1, -1),
            "text_mask": None if self.mask is None else self.mask.expand(rows, -1),
        }


def _walk(one: Tensor, other: Tensor, shares: Sequence[float]) -> Tensor:
    return slerp(one[None], other[None], torch.tensor(shares, dtype=one.dtype, device=one.device)[:, None])


def _from_noise(
    decoder: Decoder,
    embeds: Tensor,
    noise: Tensor,
    steps: int | None,
    eta: float,
    text: _Text,
    sampling: dict[str, Any],
) -> Tensor:
    """The first stage by ddim from `noise`, with the steps that it was inverted with; the others as they are set."""
    others = [None] * (len(decoder.stages) - 1)
    return decoder.sample(
        image_embed=embeds,
        noise=noise,
        steps=[steps, *others],
        sampler=["ddim", *others],
        eta=[eta, *others],
        **text.times(len(embeds)),
        **sampling,
    )
