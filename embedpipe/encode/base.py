"""The encoder interface: a model card, and embeddings of pixels and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..clip_model.encoder_card import EncoderCard, ImageRules
from ..clip_model.spec import ModelOptions
from ..ragged import RaggedRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of b images from an image tower: directions and norms of its projections.

    rows: float32 [b, dim], L2-normalised. norms: float32 [b], of the projections before that; `rows * norms[:, None]`
    is the output of the projection.
    """

    rows: np.ndarray
    norms: np.ndarray


@dataclass(frozen=True, slots=True)
class EmbeddedTexts:
    """Embeddings of n captions from a text tower.

    rows, norms: see `Embedded`. tokens_cut: int32 [n], how many tokens of each caption exceed the model's context and
    were not read; None if the tokenizer cannot tell.
    """

    rows: np.ndarray
    norms: np.ndarray
    tokens_cut: np.ndarray | None

    def take(self, rows: np.ndarray) -> EmbeddedTexts:
        """The given rows, in that order (numbers or a mask)."""
        cut = self.tokens_cut[rows] if self.tokens_cut is not None else None
        return EmbeddedTexts(self.rows[rows], self.norms[rows], cut)


@dataclass(frozen=True, slots=True)
class TextStates:
    """Embeddings and token states of n captions from a text tower.

    embeddings: of the captions. tokens: for each caption the last hidden states of its real tokens (the output of the
    tower's final layer norm, not normalised further), in the dtype of the card.
    """

    embeddings: EmbeddedTexts
    tokens: RaggedRows


class Later(Protocol):
    """A future of embeddings that a device may still be computing."""

    def wait(self) -> Embedded:
        """Wait for the embeddings."""
        ...


class Encoder(Protocol):
    """An image tower and a text tower on one device."""

    @property
    def card(self) -> EncoderCard:
        """The model card."""
        ...

    def prepare(self, batch_size: int) -> float:
        """Prepare for batches of at most that many images; returns the seconds spent compiling, if any."""
        ...

    def images(self, pixels: torch.Tensor) -> Later:
        """uint8 [b, 3, h, w] of the card's input size → b embeddings and their norms."""
        ...

    @property
    def counts_cut_tokens(self) -> bool:
        """Whether the number of truncated tokens is known."""
        ...

    def texts(self, captions: Sequence[str]) -> EmbeddedTexts:
        """Any number of captions → their embeddings, norms and truncated tokens, row i for caption i."""
        ...

    def text_states(self, captions: Sequence[str]) -> TextStates:
        """The same embeddings, and the tokens' states. Raises ModelError if the tower does not expose them."""
        ...


class TextRun(Protocol):
    """Tokenised captions that an encoder embeds batch by batch, while it does other work between them."""

    @property
    def left(self) -> int:
        """Captions that are not encoded yet."""
        ...

    def step(self) -> None:
        """Encode one more batch, if one is left."""
        ...

    def result(self) -> EmbeddedTexts | TextStates:
        """Encode what is left; what `Encoder.texts` returns, or `text_states`."""
        ...


@runtime_checkable
class EncodesInSteps(Protocol):
    """An encoder that need not embed all captions at once. Others stop embedding images meanwhile."""

    def begin_texts(self, captions: Sequence[str], with_states: bool) -> TextRun:
        """Tokenise captions, on any thread, one call at a time."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The choice of encoder, and how it computes.

    encoder: a name in ENCODERS. model: a model name, or a folder with `open_clip_config.json`. pretrained: a tag, a
    checkpoint file, `random` (weights drawn from `seed`), or empty for a folder, which has its own. dtype: of the
    stored embeddings, float16 or float32. precision: one of `precision.PRECISIONS`. decode: one of
    `images.decode.DECODERS`. text_batch_size: captions per pass. compile: torch.compile the image tower, which takes a
    minute or so at the start of each worker. options: explicit activation and preprocessing, which a checkpoint file
    may need. as_version_0_1: build the model as version 0.1 did, which used the architecture's activation for all its
    tags, to match its embeddings; the card then records what version 0.1 did. background: the colour that transparent
    images are composited over, a CSS colour; None for white, or for that of the output that is continued. image_rules:
    those of a data set that is continued or searched, in place of `background`.
    """

    model: str
    pretrained: str = ""
    encoder: str = "open_clip"
    precision: str = "auto"
    dtype: str = "float16"
    decode: str = "exact"
    text_batch_size: int = 256
    compile: bool = False
    seed: int = 0
    options: ModelOptions = field(default_factory=ModelOptions)
    as_version_0_1: bool = False
    background: str | None = None
    image_rules: ImageRules | None = None


LoadEncoder = Callable[[EncoderConfig, str], Encoder]
