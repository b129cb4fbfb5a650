"""The types that flow between the data, the models and the training loop.

Shapes: b batch, d embedding width, l text length, w width of a text token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from dalle2_core.collectives import Collectives
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.inputs import checked_mask, mask_of
from dalle2_core.rng import RNG

SelfBatch = TypeVar("SelfBatch", bound="SizedBatch")
AnyBatch = TypeVar("AnyBatch", bound="SizedBatch", contravariant=True)


class SizedBatch(Protocol):
    """What the training loop asks of a batch: its number of rows, a copy on another device, and some of its rows."""

    def __len__(self) -> int: ...

    def to(self: SelfBatch, device: torch.device) -> SelfBatch: ...

    def part(self: SelfBatch, start: int, stop: int) -> SelfBatch: ...


@dataclass(frozen=True, slots=True)
class StepLoss:
    """One step's loss.

    loss: scalar tensor with a graph, the mean over the batch.
    metrics: further numbers for the log, each a mean over the batch; a tensor is read together with the loss, later.
    """

    loss: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


@runtime_checkable
class Trainable(Protocol[AnyBatch]):
    """A `torch.nn.Module` that gives its own training loss.

    Every random draw that is not a layer's dropout comes from `draws`, which is on the model's device, by the
    functions of `dalle2_core.rng`: the loss of a row must not depend on which other rows are in its batch. A model
    whose loss does compare rows says so by an attribute `compares_rows = True`, and its batches are never cut.
    """

    def loss(self, batch: AnyBatch, draws: RNG) -> StepLoss: ...


@runtime_checkable
class NonGradientUpdate(Protocol):
    """A `Trainable` that also changes by other means than gradients: by what it saw in a step's forward passes."""

    def after_step(self, together: Collectives) -> None:
        """Called once after every optimizer step, by all processes. Afterwards all hold the same."""


@dataclass(frozen=True, slots=True)
class PriorBatch:
    """Rows for the prior: row i of every tensor is the same sample.

    text_embed: [b, d] float32, L2-normalised.
    image_embed: [b, d] float32, L2-normalised.
    text_tokens: [b, l, w] last hidden states of the text tower, or None.
    text_mask: [b, l] bool, True at real tokens; None where there are no tokens or all are real.
    """

    text_embed: Tensor
    image_embed: Tensor
    text_tokens: Tensor | None = None
    text_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.text_embed.ndim != 2 or self.text_embed.shape != self.image_embed.shape:
            raise ShapeError(
                f"text_embed {tuple(self.text_embed.shape)} and image_embed {tuple(self.image_embed.shape)} "
                "must both be [b, d] with the same b and d; are they from the same encoder?"
            )
        if self.text_mask is not None:
            if self.text_tokens is None:
                raise ShapeError("text_mask is given without text_tokens; give both or neither")
            object.__setattr__(self, "text_mask", checked_mask(self.text_mask, self.text_tokens))

    def __len__(self) -> int:
        return int(self.text_embed.shape[0])

    def to(self, device: torch.device) -> PriorBatch:
        """The same batch on `device`; from pinned memory without waiting for the copy."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        text = TextCondition(self.text_embed, self.text_tokens, self.text_mask).trimmed()
        return PriorBatch(
            text_embed=self.text_embed.to(device, non_blocking=True),
            image_embed=self.image_embed.to(device, non_blocking=True),
            text_tokens=move(text.tokens),
            text_mask=move(text.mask),
        )

    def part(self, start: int, stop: int) -> PriorBatch:
        """Rows `start` to `stop`."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[start:stop]

        return PriorBatch(
            self.text_embed[start:stop], self.image_embed[start:stop], cut(self.text_tokens), cut(self.text_mask)
        )


@dataclass(frozen=True, slots=True)
class TextCondition:
    """What a prior network is told about the text.

    embed: [b, d]. tokens: [b, l, w] or None. mask: [b, l] bool, True at real tokens, or None for all real.
    keep: [b] bool, False where the text is dropped (embedding and tokens both); None keeps every row's.
    """

    embed: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    keep: Tensor | None = None

    @classmethod
    def of(cls, embed: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: Tensor | None = None) -> TextCondition:
        """Without a mask, tokens that are all zero count as padding, as DALLE2-pytorch stores it."""
        return cls(embed, tokens, None if tokens is None else mask_of(tokens, mask), keep)

    def in_dtype(self, dtype: torch.dtype) -> TextCondition:
        """With floats of that dtype."""
        return replace(self, embed=self.embed.to(dtype), tokens=None if self.tokens is None else self.tokens.to(dtype))

    def trimmed(self) -> TextCondition:
        """Without the places at the end where no row has a token.

        In training on a GPU they stay, hidden: to know the length the host would wait for the device in every step.
        Batches are trimmed on the host, before they are moved.
        """
        if self.tokens is None or self.mask is None or (self.mask.device.type != "cpu" and torch.is_grad_enabled()):
            return self
        used = self.mask.any(dim=0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 0
        return replace(self, tokens=self.tokens[:, :length], mask=self.mask[:, :length])

    def unconditional(self) -> TextCondition:
        """The same rows with the text dropped."""
        return replace(self, keep=torch.zeros(len(self.embed), dtype=torch.bool, device=self.embed.device))

    def joined(self, other: TextCondition) -> TextCondition:
        """These rows, then the other's. Both have tokens of the same length, or neither has any."""
        if self.tokens is None or other.tokens is None:
            tokens, mask = None, None
        else:
            tokens = torch.cat((self.tokens, other.tokens))
            mask = torch.cat((_true_where_none(self.mask, self.tokens), _true_where_none(other.mask, other.tokens)))
        keep = torch.cat((_true_where_none(self.keep, self.embed), _true_where_none(other.keep, other.embed)))
        return TextCondition(torch.cat((self.embed, other.embed)), tokens, mask, keep)

    def repeated(self, times: int) -> TextCondition:
        """Every row `times` times in a row: a a b b …"""

        def repeat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(times, dim=0)

        return TextCondition(
            self.embed.repeat_interleave(times, dim=0), repeat(self.tokens), repeat(self.mask), repeat(self.keep)
        )


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """What a text tower makes of b texts.

    text_embed: [b, d], L2-normalised. text_encodings: [b, l, w] last hidden states, zero at padding, or None.
    text_mask: [b, l] bool, True at real tokens, or None.
    """

    text_embed: Tensor
    text_encodings: Tensor | None = None
    text_mask: Tensor | None = None

    def part(self, start: int, stop: int) -> EmbeddedText:
        """Rows `start` to `stop`."""
        return self._each(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> EmbeddedText:
        """The same text on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def repeated(self, times: int) -> EmbeddedText:
        """Every row `times` times in a row: a a b b …"""
        return self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> EmbeddedText:
        there = (self.text_embed, self.text_encodings, self.text_mask)
        embed, encodings, mask = (None if it is None else change(it) for it in there)
        assert embed is not None
        return EmbeddedText(embed, encodings, mask)


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """What an image tower makes of b images. image_embed: [b, d], L2-normalised."""

    image_embed: Tensor


class ClipEncoders(Protocol):
    """A CLIP as a prior sees it. Frozen: nothing here takes a gradient."""

    def embed_text(self, text: Tensor) -> EmbeddedText:
        """text: [b, l] integer tokens."""
        ...

    def embed_image(self, image: Tensor) -> EmbeddedImage:
        """image: [b, 3, h, w], float in [0, 1] or uint8."""
        ...


def on_host(named: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Scalars as numbers; those on a device are copied together: the host waits for it once."""
    tensors = {name: it.detach().double() for name, it in named.items() if isinstance(it, Tensor)}
    read = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) if tensors else {}
    return {name: read[name] if name in read else float(it) for name, it in named.items()}


def check_clip_width(clip: ClipEncoders | None, width: int | None, whose: str) -> None:
    """Raise ConfigError if a CLIP that says its width (`dim_latent`) makes embeddings of another one."""
    dim = getattr(clip, "dim_latent", None)
    if isinstance(dim, int) and width is not None and dim != width:
        raise ConfigError(f"the clip makes embeddings of {dim} values and {whose} takes {width}; they must be the same")


def _true_where_none(mask: Tensor | None, like: Tensor) -> Tensor:
    """The mask, or all True in the shape of `like` without its last dimension."""
    return torch.ones(like.shape[:-1], dtype=torch.bool, device=like.device) if mask is None else mask
