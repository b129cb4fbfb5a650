"""What every encoder offers: a card that says what it is, and embeddings of pixels and of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..card import EncoderCard


class Encoder(Protocol):
    """An image tower and a text tower on one device."""

    @property
    def card(self) -> EncoderCard:
        """What made the numbers."""
        ...

    def images(self, pixels: torch.Tensor) -> np.ndarray:
        """uint8 [b, 3, h, w] of the card's input size → float32 [b, dim], L2-normalised."""
        ...

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Captions, as many as there are, → float32 [n, dim], L2-normalised, row i for caption i."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Which encoder, and how it computes.

    encoder: a name in ENCODERS. model: a model name, or a folder with `open_clip_config.json`. pretrained: a tag, a
    checkpoint file, `random` (weights drawn from `seed`), or empty for a folder, which brings its own. dtype: of the
    stored embeddings, float16 or float32. precision: one of `precision.PRECISIONS`. decode: one of
    `images.decode.DECODERS`. text_batch_size: captions per pass. compile: torch.compile the image tower, which costs a
    minute or so at the start.
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


LoadEncoder = Callable[[EncoderConfig, str], Encoder]
