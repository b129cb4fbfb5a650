"""What a decoder is told, and the batches that it is trained on.

Shapes: b batch, c channels, h w pixels, d width of an image embedding, l text length, t width of a text token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dalle2_core.errors import ShapeError
from dalle2_core.inputs import checked_mask, mask_of

Tensors = TypeVar("Tensors", "DecoderBatch", "DecoderCondition")


@dataclass(frozen=True, slots=True)
class DecoderBatch:
    """Rows for a decoder: row i of every tensor is the same sample.

    images: [b, c, h, w], uint8, or float in [0, 1]; square, at least as large as the stage's. With `encoded`: what the
    stage's `encoded` made of them.
    image_embed: [b, d] float, L2-normalised; None for a decoder that is unconditional.
    text_tokens: [b, l, t] last hidden states of the text tower, or None. text_mask: [b, l] bool, True at real
    tokens; None where there are no tokens or all are real.
    """

    images: Tensor
    image_embed: Tensor | None = None
    text_tokens: Tensor | None = None
    text_mask: Tensor | None = None
    encoded: bool = False

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ShapeError(f"images {tuple(self.images.shape)} must be [b, c, h, w]")
        if not (self.images.dtype == torch.uint8 or self.images.is_floating_point()):
            raise ShapeError(f"images are {self.images.dtype}; give uint8, or floats in [0, 1]")
        if self.text_mask is not None and self.text_tokens is None:
            raise ShapeError("text_mask is given without text_tokens; give both or neither")
        for name in ("image_embed", "text_tokens", "text_mask"):
            tensor = getattr(self, name)
            if tensor is not None and len(tensor) != len(self.images):
                raise ShapeError(f"{len(self.images)} images and {len(tensor)} rows of {name} do not pair up")
        if self.text_mask is not None and self.text_tokens is not None:
            object.__setattr__(self, "text_mask", checked_mask(self.text_mask, self.text_tokens))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> DecoderBatch:
        """The same batch on `device`; from pinned memory without waiting for the copy."""
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, start: int, stop: int) -> DecoderBatch:
        """Rows `start` to `stop`."""
        return _each(self, lambda tensor: tensor[start:stop])


@dataclass(frozen=True, slots=True)
class DecoderCondition:
    """What a U-Net is told besides the noisy image and the time. What is absent is None.

    image_embed: [b, d]. text_tokens: [b, l, t]. text_mask: [b, l] bool, True at real tokens, None for all real.
    image_keep, text_keep: [b] bool, False where it is dropped; None keeps every row's.
    lowres: [b, c, h, w], the smaller image scaled to this one's size, in the range the network works in.
    lowres_noise: [b] integer, how noisy `lowres` is.
    """

    image_embed: Tensor | None = None
    text_tokens: Tensor | None = None
    text_mask: Tensor | None = None
    image_keep: Tensor | None = None
    text_keep: Tensor | None = None
    lowres: Tensor | None = None
    lowres_noise: Tensor | None = None

    @classmethod
    def of(cls, image_embed: Tensor | None, text_tokens: Tensor | None, text_mask: Tensor | None) -> DecoderCondition:
        """Without a mask, tokens that are all zero count as padding, as DALLE2-pytorch stores it."""
        return cls(image_embed, text_tokens, None if text_tokens is None else mask_of(text_tokens, text_mask))

    def in_dtype(self, dtype: torch.dtype) -> DecoderCondition:
        """With floats of that dtype."""
        return _each(self, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def unconditional(self) -> DecoderCondition:
        """The same rows with image embedding and text dropped. The smaller image stays."""
        return replace(self.without_text(), image_keep=_none_kept(self.image_embed))

    def without_text(self) -> DecoderCondition:
        """The same rows with the text dropped."""
        return replace(self, text_keep=_none_kept(self.text_tokens))

    def joined(self, other: DecoderCondition) -> DecoderCondition:
        """These rows, then the other's. Both have the same fields and texts of the same length."""
        one, two = _masks_filled(self), _masks_filled(other)
        pairs = {item.name: (getattr(one, item.name), getattr(two, item.name)) for item in fields(self)}
        return DecoderCondition(**{name: None if a is None else torch.cat((a, b)) for name, (a, b) in pairs.items()})

    def part(self, start: int, stop: int) -> DecoderCondition:
        """Rows `start` to `stop`."""
        return _each(self, lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> DecoderCondition:
        """The same conditioning on `device`."""
        return _each(self, lambda tensor: tensor.to(device))


def published_condition(
    *,
    image_embed: Tensor | None = None,
    lowres_cond_img: Tensor | None = None,
    lowres_noise_level: Tensor | None = None,
    text_encodings: Tensor | None = None,
    image_cond_drop_prob: float = 0.0,
    text_cond_drop_prob: float = 0.0,
) -> DecoderCondition:
    """The condition by the keywords of DALLE2-pytorch's U-Net.

    image_embed: [b, d]. text_encodings: [b, l, t]. lowres_cond_img: [b, c, h, w] in [-1, 1]. lowres_noise_level: [b]
    integer. The probabilities are those of each row to be dropped.
    """

    def keep(of: Tensor | None, probability: float) -> Tensor | None:
        if of is None or probability == 0:
            return None
        return torch.rand(len(of), device=of.device) >= probability

    return replace(
        DecoderCondition.of(image_embed, text_encodings, None),
        lowres=lowres_cond_img,
        lowres_noise=lowres_noise_level,
        image_keep=keep(image_embed, image_cond_drop_prob),
        text_keep=keep(text_encodings, text_cond_drop_prob),
    )


def _each(value: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    """The same with `change` made to every tensor that is there."""
    there = {item.name: getattr(value, item.name) for item in fields(value)}
    changed: dict[str, Any] = {name: change(it) for name, it in there.items() if isinstance(it, Tensor)}
    return replace(value, **changed)


def _none_kept(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else torch.zeros(len(rows), dtype=torch.bool, device=rows.device)


def _masks_filled(condition: DecoderCondition) -> DecoderCondition:
    """With masks of True in place of None where there is something to mask."""

    def filled(mask: Tensor | None, of: Tensor | None, dims: int) -> Tensor | None:
        if of is None or mask is not None:
            return mask
        return torch.ones(of.shape[:dims], dtype=torch.bool, device=of.device)

    return replace(
        condition,
        text_mask=filled(condition.text_mask, condition.text_tokens, 2),
        image_keep=filled(condition.image_keep, condition.image_embed, 1),
        text_keep=filled(condition.text_keep, condition.text_tokens, 1),
    )
