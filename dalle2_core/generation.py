"""How images are made of texts, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dalle2_core.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How images are made of texts. What may be a tuple has one value for each stage of the decoder.

    cond_scale, text_cond_scale: of the decoder's guidance, by image embedding and by text; 1 is none.
    prior_cond_scale: of the prior's. prior_num_samples: image embeddings drawn for each image, of which the one nearest
    to the text is decoded; None takes the model's.
    num_images: for each text, each from an image embedding of its own. best_of: draw so many times as many, and keep
    those that CLIP finds nearest to the text, the nearest first.
    seed: of all draws; None draws one. An image depends on the seed, its text and its place alone.
    steps, sampler, eta: of the decoder. prior_steps, prior_sampler: of the prior. None takes the model's own.
    max_batch_size: images made at once; None makes all. return_pil_images: a list of them instead of a tensor.
    """

    cond_scale: float | tuple[float, ...] = 1.0
    prior_cond_scale: float = 1.0
    return_pil_images: bool = False
    text_cond_scale: float | tuple[float | None, ...] | None = None
    prior_num_samples: int | None = None
    num_images: int = 1
    best_of: int = 1
    seed: int | None = None
    steps: int | tuple[int | None, ...] | None = None
    sampler: str | tuple[str | None, ...] | None = None
    eta: float | tuple[float | None, ...] | None = None
    prior_steps: int | None = None
    prior_sampler: str | None = None
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_images", "best_of", "max_batch_size", "prior_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")

    def of_decoder(self) -> dict[str, Any]:
        """What `Decoder.sample` and `Decoder.check_sampling` take."""
        names = ("cond_scale", "text_cond_scale", "steps", "sampler", "eta")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Generated:
    """Images of texts, those of one text together.

    images: [n, c, h, w] in [0, 1]. image_embed: [n, d], what each was decoded from. text: which text, for each image.
    scores: [n] cosine of CLIP's embedding of the image with that of the text; None where they were not ranked.
    """

    images: Tensor
    image_embed: Tensor
    text: list[int]
    scores: Tensor | None = None

    def best(self, scores: Tensor, count: int) -> Generated:
        """The `count` images of each text with the highest scores [n], the highest first."""
        texts = len(set(self.text))
        order = scores.view(texts, -1).argsort(dim=1, descending=True, stable=True)[:, :count]
        rows = (torch.arange(texts)[:, None] * (len(scores) // texts) + order).flatten()
        images, embeds = (it[rows.to(it.device)] for it in (self.images, self.image_embed))
        return Generated(images, embeds, [self.text[row] for row in rows.tolist()], scores[rows])

    def pil(self) -> list[Image]:
        """As Pillow's images."""
        from PIL import Image

        pixels = (self.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(it[..., 0] if it.shape[2] == 1 else it) for it in pixels]
