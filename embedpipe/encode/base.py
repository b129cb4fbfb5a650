"""What every encoder offers: a card that says what it is, and embeddings of pixels and of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ..card import EncoderCard
from ..model_spec import ModelOptions
from ..ragged import RaggedRows


class Later(Protocol):
    """An array that may still be in the making, on a device; a tensor in memory is one."""

    def numpy(self) -> np.ndarray:
        """The array, waited for."""
        ...


@dataclass(frozen=True, slots=True)
class TextStates:
    """What a text tower made of n captions.

    embeddings: float32 [n, dim], L2-normalised. tokens: for each caption the last hidden states of its real tokens (the
    output of the tower's final layer norm, not normalised further), in the dtype that the card stores.
    """

    embeddings: np.ndarray
    tokens: RaggedRows


class Encoder(Protocol):
    """An image tower and a text tower on one device."""

    @property
    def card(self) -> EncoderCard:
        """What made the numbers."""
        ...

    def prepare(self, batch_size: int) -> float:
        """Make ready for batches of that many pictures, at most; returns the seconds that compiling took, if any."""
        ...

    def images(self, pixels: torch.Tensor) -> Later:
        """uint8 [b, 3, h, w] of the card's input size → float32 [b, dim], L2-normalised."""
        ...

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Captions, as many as there are, → float32 [n, dim], L2-normalised, row i for caption i."""
        ...

    def text_states(self, captions: Sequence[str]) -> TextStates:
        """The same embeddings, and the tokens' states beside them. Raises ModelError where a tower has none."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Which encoder, and how it computes.

    encoder: a name in ENCODERS. model: a model name, or a folder with `open_clip_config.json`. pretrained: a tag, a
    checkpoint file, `random` (weights drawn from `seed`), or empty for a folder, which brings its own. dtype: of the
    stored embeddings, float16 or float32. precision: one of `precision.PRECISIONS`. decode: one of
    `images.decode.DECODERS`. text_batch_size: captions per pass. compile: torch.compile the image tower, which costs a
    minute or so at the start of each worker. options: what is said of activation and preprocessing, which a checkpoint
    file may need. as_version_0_1: build the model as version 0.1 did, which took the architecture's activation for all
    its tags, to match the numbers that it wrote; the card then records what version 0.1 did.
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


LoadEncoder = Callable[[EncoderConfig, str], Encoder]
