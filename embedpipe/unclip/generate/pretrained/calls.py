"""What diffusers' pipelines are called with, by family: text to image, from a picture, and filling one in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .folder import BASE_MODEL, BASE_MODEL_XL, KANDINSKY, STABLE_UNCLIP

OnDrawn = Callable[[int], None]
"""Hears how many steps are done."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How pictures are drawn.

    size: pixels of a side. guidance: away from `negative` [1, d] (Kandinsky), the empty text (Stable unCLIP) or both
    the empty text and an embedding of zeros (base models); 1 is none. known: a picture [3, size, size] in [0, 1], and
    where it is kept, [size, size] bool. start: a picture [3, size, size] in [0, 1] that is noised to begin with;
    strength: how much, of 1; the steps above it are left out.
    """

    steps: int
    guidance: float
    size: int
    negative: Tensor | None = None
    known: tuple[Tensor, Tensor] | None = None
    start: Tensor | None = None
    strength: float = 1.0

    @property
    def taken(self) -> int:
        """Steps that are taken."""
        return self.steps if self.start is None else min(int(self.steps * self.strength), self.steps)


@dataclass(frozen=True, slots=True)
class Call:
    """pipeline: a class of diffusers. signed: it gives pictures in [-1, 1], not in [0, 1]."""

    pipeline: str
    keywords: dict[str, Any]
    signed: bool = False


@dataclass(frozen=True, slots=True)
class DrawingRequest:
    """rows: raw embeddings [n, d], in the decoder's dtype. generators, texts: one for each."""

    rows: Tensor
    generators: Sequence[torch.Generator]
    texts: Sequence[str]
    how: Drawing
    told: OnDrawn

    def common(self) -> dict[str, Any]:
        """What all pipelines take."""
        return {
            "num_inference_steps": self.how.steps,
            "guidance_scale": self.how.guidance,
            "generator": list(self.generators),
            "output_type": "pt",
        }

    def at_step(self, pipeline: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Called by diffusers at the end of each step."""
        self.told(step + 1)
        return {}

    def repeated(self, picture: Tensor) -> Tensor:
        """[n, c, h, w] of one [c, h, w]."""
        return picture.repeat(len(self.rows), 1, 1, 1)


def _kandinsky(asked: DrawingRequest) -> Call:
    rows, how = asked.rows, asked.how
    negative = torch.zeros_like(rows[:1]) if how.negative is None else how.negative.to(rows)
    keywords = asked.common() | {
        "image_embeds": rows,
        "negative_image_embeds": negative.expand(len(rows), -1),
        "height": how.size,
        "width": how.size,
        "callback_on_step_end": asked.at_step,
    }
    if how.known is not None:
        picture, kept = how.known
        more = {"image": asked.repeated(picture * 2 - 1), "mask_image": asked.repeated((~kept).float())}
        return Call("KandinskyV22InpaintPipeline", keywords | more, True)
    if how.start is not None:
        begin = {"image": [how.start[None]] * len(rows), "strength": how.strength}
        return Call("KandinskyV22Img2ImgPipeline", keywords | begin)
    return Call("KandinskyV22Pipeline", keywords, True)


def _stable_unclip(asked: DrawingRequest) -> Call:
    keywords = asked.common() | {
        "prompt": list(asked.texts),
        "image_embeds": asked.rows,
        "height": asked.how.size,
        "width": asked.how.size,
        "callback": lambda step, time, latents: asked.told(step + 1),
    }
    return Call("StableUnCLIPImg2ImgPipeline", keywords)


def _base_model(asked: DrawingRequest, prefix: str = "StableDiffusion") -> Call:
    """With an IP-Adapter, whose negative embedding is zeros, as in diffusers."""
    rows, how = asked.rows, asked.how
    embeds = torch.cat((torch.zeros_like(rows), rows)) if how.guidance > 1 else rows
    keywords = asked.common() | {
        "prompt": list(asked.texts),
        "ip_adapter_image_embeds": [embeds[:, None]],
        "callback_on_step_end": asked.at_step,
    }
    size = {"height": how.size, "width": how.size}
    if how.known is not None:
        picture, kept = how.known
        more = {"image": asked.repeated(picture), "mask_image": asked.repeated((~kept).float()[None]), "strength": 1.0}
        return Call(f"{prefix}InpaintPipeline", keywords | size | more)
    if how.start is not None:
        begin = {"image": asked.repeated(how.start), "strength": how.strength}
        return Call(f"{prefix}Img2ImgPipeline", keywords | begin)
    return Call(f"{prefix}Pipeline", keywords | size)


def _base_model_xl(asked: DrawingRequest) -> Call:
    return _base_model(asked, "StableDiffusionXL")


CALLS: dict[str, Callable[[DrawingRequest], Call]] = {
    KANDINSKY.name: _kandinsky,
    STABLE_UNCLIP.name: _stable_unclip,
    BASE_MODEL.name: _base_model,
    BASE_MODEL_XL.name: _base_model_xl,
}
