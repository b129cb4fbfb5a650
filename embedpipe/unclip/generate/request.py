"""What pictures are asked of, whether models can make them, and what came of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dalle2_core.chunking import OnSmaller
from dalle2_core.decoder.cascade import OnStep
from dalle2_core.generation import GenerationConfig
from embedpipe.errors import InputError, OptionError
from embedpipe.index import read_queries

from .models import OnDoing, OpenedModels, unheard
from .outputs import png


@dataclass(frozen=True, slots=True)
class Request:
    """What pictures are asked of.

    texts: captions. captions, column: a file of more of them, and its column. from_image: a picture to vary. inpaint: a
    picture and a mask, white where it is painted anew. interpolate: two pictures. embedding: an .npy file of image
    embeddings. Besides pictures and embeddings a text is only for a decoder that reads it; it is told the empty one if
    there is none. text_diff: a picture to change towards the text, away from base_text (2204.06125, section 3.3).
    init_image: a picture that is noised to begin with, by the share `strength`; of a decoder of diffusers.
    """

    texts: tuple[str, ...] = ()
    captions: str | None = None
    column: str | None = None
    from_image: str | None = None
    inpaint: tuple[str, str] | None = None
    interpolate: tuple[str, str] | None = None
    embedding: str | None = None
    text_diff: str | None = None
    base_text: str = ""
    init_image: str | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        sources = {"from_image": self.from_image, "interpolate": self.interpolate, "embedding": self.embedding}
        sources |= {"inpaint": self.inpaint, "text_diff": self.text_diff}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            raise OptionError(f"`{given[0]}` and `{given[1]}` exclude each other", "Give one of them")
        if not given and not self.texts and self.captions is None:
            raise OptionError(
                "nothing is asked for", 'Give a text, `captions`, `from_image` … For example: "a pineapple"'
            )
        if self.base_text and self.text_diff is None:
            raise OptionError("`base_text` is only of use with `text_diff`")
        if self.strength is not None and self.init_image is None:
            raise OptionError("`strength` is only of use with `init_image`")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise OptionError(f"`strength={self.strength}`: must be above 0 and at most 1")
        if self.init_image is not None and self.inpaint is not None:
            raise OptionError("`init_image` and `inpaint` exclude each other", "Give one of them")
        if self.column is not None and self.captions is None:
            raise OptionError("`column` is only of use with `captions`")

    @property
    def mode(self) -> str:
        """text, variations, interpolation, embedding, inpainting or text_diff."""
        named = {
            "variations": self.from_image,
            "interpolation": self.interpolate,
            "embedding": self.embedding,
            "inpainting": self.inpaint,
            "text_diff": self.text_diff,
        }
        return next((name for name, value in named.items() if value is not None), "text")

    def all_texts(self) -> list[str]:
        """Those given, then those of the file. Raises InputError if it cannot be read."""
        if self.captions is None:
            return list(self.texts)
        found = read_queries(self.captions, self.column)
        if isinstance(found, np.ndarray):
            raise InputError(f"{self.captions}: holds embeddings, not captions", "Give them with `embedding`")
        return [*self.texts, *found]


@dataclass(frozen=True, slots=True)
class Made:
    """What was made, in order.

    images: [n, c, h, w] in [0, 1]. labels: for each, what it is of. texts: all of them. facts: of the models.
    Where they are of texts, text: which one, for each image; embeds: [n, d], the encoder's, of the images; scores:
    their cosines with the texts'. record: what the .json file says, where images were written.
    """

    images: Tensor
    labels: list[str]
    texts: list[str]
    facts: dict[str, Any]
    text: list[int] | None = None
    scores: list[float] | None = None
    embeds: Tensor | None = None
    record: dict[str, Any] | None = None

    def pil(self) -> list[Image.Image]:
        """The images as Pillow's: a notebook shows them."""
        return [Image.open(io.BytesIO(png(image)), formats=("PNG",)) for image in self.images]


@dataclass(frozen=True, slots=True)
class Watching:
    """Who hears of the steps, of batches that memory made smaller, and of what goes on before there are steps.

    on_note: hears what should be known of the texts, such as that one is longer than the encoder's context.
    """

    on_step: OnStep | None = None
    on_smaller_batch: OnSmaller | None = None
    on_doing: OnDoing = unheard
    on_note: OnDoing = unheard

    def keywords(self) -> dict[str, Any]:
        """As the models take them."""
        return {"on_step": self.on_step, "on_smaller_batch": self.on_smaller_batch}


def check_request(request: Request, parts: OpenedModels, config: GenerationConfig, texts: Sequence[str]) -> None:
    """Whatever can be said before an encoder is loaded and anything is made."""
    mode = request.mode
    check_asked(request, parts.prior is not None, parts.reads_text, config, texts)
    if request.init_image is not None:
        raise InputError("`init_image` is for decoders of diffusers", "Leave it out, or give `from_image`")
    if mode in ("variations", "interpolation", "text_diff"):
        _check_noise_modes({"variations": "from_image", "interpolation": "interpolate"}.get(mode, mode), config)
    if mode not in ("text", "embedding") and parts.decoder.stage(1).image_channels != 3:
        raise InputError("the decoder makes pictures of one channel; it cannot start from a picture in colour")
    parts.decoder.check_sampling(**config.of_decoder())


def check_asked(
    request: Request, has_prior: bool, reads_text: bool, config: GenerationConfig, texts: Sequence[str]
) -> None:
    """Whether what is asked for goes with the models. reads_text: whether the decoder does."""
    mode = request.mode
    field = {"variations": "from_image", "interpolation": "interpolate", "embedding": "embedding"}.get(mode)
    needs_prior = mode == "text" or (mode == "inpainting" and texts and not reads_text)
    if needs_prior and not has_prior:
        raise InputError("a text needs a prior, which turns it into an image embedding", "Give its run with `prior`")
    if field is not None and texts and not reads_text:
        raise InputError(f"`{field}` takes no text: this decoder reads none", f"Leave the text, or `{field}`, out")
    if len(texts) > 1 and reads_text and (field is not None or (mode == "inpainting" and not has_prior)):
        raise InputError(f"all pictures are told the same text, and {len(texts)} are given", "Give one, or none")
    if mode == "text_diff" and len(texts) != 1:
        raise InputError(f"`text_diff` goes towards one text, and {len(texts)} are given", "Give one")
    if config.best_of > 1 and (mode == "text_diff" or not (texts and has_prior)):
        raise OptionError("`best_of` ranks pictures by a text, and there is none", "Leave it out")
    if mode in ("interpolation", "text_diff") and config.num_images < 2:
        field = "interpolate" if mode == "interpolation" else mode
        raise OptionError(f"`{field}` needs two pictures or more to show the way", "Give `num_images=2` or more")


def _check_noise_modes(field: str, config: GenerationConfig) -> None:
    """The ways that begin with the noise from which ddim makes a picture."""
    eta = None if field == "from_image" else config.eta
    for name, value in (("sampler", config.sampler), ("eta", eta)):
        if value is not None:
            raise OptionError(f"`{field}` goes by ddim from the noise that makes the picture: it takes no `{name}`")
    for name, value in (("steps", config.steps), ("eta", config.eta)):
        if isinstance(value, tuple) and len(value) > 1:
            raise OptionError(f"`{field}` takes one number of `{name}`, the first stage's", f"Give {value[0]}")
