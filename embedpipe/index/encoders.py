"""The model that made a data set, loaded to embed a query: torch comes in here, and only when a query needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..card import EncoderCard
from ..errors import InputError, RunMismatch
from ..load import EmbeddingDataset
from ..manifest import refuse_difference

if TYPE_CHECKING:
    from ..encode import Encoder
    from ..encode.base import EmbeddedTexts

_TEXTS_AT_ONCE = 256


def query_encoder(
    dataset: EmbeddingDataset,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
    precision: str = "auto",
) -> Encoder:
    """The encoder that made `dataset`: see `encoder_of`."""
    return encoder_of(dataset.card.of_encoder(), dataset.path, model, pretrained, device, precision)


def encoder_of(
    card: EncoderCard,
    path: str,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
    precision: str = "auto",
) -> Encoder:
    """The encoder of a card, loaded from where it says, or from `model`/`pretrained`. path: whose card it is.

    Raises RunMismatch when the model found there is not the one the embeddings were made with, InputError when nobody
    knows which that is.
    """
    from ..encode import EncoderConfig, load_encoder

    if not card.known and model is None:
        raise InputError(f"{path}: which model made it is not known ({card.model})", "Give --model and --pretrained")
    config = EncoderConfig(
        model=model or card.model,
        pretrained=(card.pretrained if model is None else "") if pretrained is None else pretrained,
        precision=precision,
        dtype=card.dtype,
    )
    encoder = load_encoder(config, device)
    if not card.known:
        if encoder.card.dim != card.dim:
            raise RunMismatch(
                f"{path}: its rows have {card.dim} values, those of {config.model} {encoder.card.dim}",
                "Give the model that made them",
            )
        return encoder
    # A query may be computed in another precision than the data: the model is what must be the same.
    same_format = replace(encoder.card, dtype=card.dtype, precision=card.precision, decode=card.decode)
    refuse_difference(path, card.facts(), same_format.facts(), "encoder", "Give the model that made it")
    return encoder


def embed_image(encoder: Encoder, path: str) -> np.ndarray:
    """float32 [dim] of an image file. Raises InputError when it is missing or does not decode."""
    from ..images.decode import Undecodable, decode

    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"{path}: {problem.strerror or problem}", "Check the path") from problem
    decoded = decode(data, encoder.card.preprocess)
    if isinstance(decoded, Undecodable):
        raise InputError(f"{path}: {decoded.message}", "Give a picture that Pillow can read")
    first: np.ndarray = encoder.images(decoded.pixels[None]).wait().rows[0]
    return first


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], EmbeddedTexts]]:
    """(some of the texts, what the encoder makes of them), in order."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        yield some, encoder.texts(some)
