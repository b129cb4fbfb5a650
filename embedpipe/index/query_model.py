"""Embed a query with the model of the data set. torch is imported here, only when a query needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from ..clip_model.compatibility import computes_quick_gelu, same_encoder
from ..clip_model.encoder_card import EncoderCard
from ..clip_model.spec import ModelOptions, has_quick_gelu, is_checkpoint
from ..clip_model.trusted import require_trusted, trust_card
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
    options: ModelOptions | None = None,
) -> Encoder:
    """The encoder of `dataset`: see `encoder_of`."""
    return encoder_of(dataset.card.of_encoder(), dataset.path, model, pretrained, device, precision, options)


def encoder_of(
    card: EncoderCard,
    path: str,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
    precision: str = "auto",
    options: ModelOptions | None = None,
) -> Encoder:
    """The encoder of a card, loaded from its recorded location, or from `model`/`pretrained`. path: the card's data
    set.

    For a version 0.1 card the model is built as version 0.1 did, to match the stored embeddings.

    options: activation and preprocessing of a checkpoint file; only for other tools' data, as our card records them.

    Raises RunMismatch if the loaded model is not the one that made the embeddings, InputError if that one is unknown,
    UntrustedModel if the card names a model that this user never gave: see `require_trusted`.
    """
    from ..encode import EncoderConfig, load_encoder

    if not card.known and model is None:
        raise InputError(f"{path}: which model made it is not known ({card.model})", "Give `model` and `pretrained`")
    name = model or card.model
    weights = (card.pretrained if model is None else "") if pretrained is None else pretrained
    if model is None:
        require_trusted(name, weights if pretrained is None else "", path)
    if card.dated:
        same_encoder((path, card), (name, replace(card, model=name)))
    file = is_checkpoint(name, weights)
    config = EncoderConfig(
        model=name,
        pretrained=weights,
        precision=precision,
        dtype=card.dtype,
        # The settings that match the embeddings: a file does not record how it was used, and version 0.1 differed.
        options=_as_the_card_says(card) if options in (None, ModelOptions()) and file else options or ModelOptions(),
        as_version_0_1=card.dated,
        image_rules=card.rules,
    )
    encoder = load_encoder(config, device)
    if not card.known:
        if encoder.card.dim != card.dim:
            raise RunMismatch(
                f"{path}: its rows have {card.dim} values, those of {config.model} {encoder.card.dim}",
                "Give the model that made them",
            )
        return encoder
    # A query may be computed in another precision than the data: only the model must match.
    same_format = replace(encoder.card, dtype=card.dtype, precision=card.precision, decode=card.decode)
    refuse_difference(path, card.facts(), same_format.facts(), "encoder", "Give the model that made it")
    trust_card(encoder.card)
    return encoder


def _as_the_card_says(card: EncoderCard) -> ModelOptions:
    """The card's settings as options for a checkpoint file."""
    if not card.known or card.dated:
        return ModelOptions()
    preprocess = card.preprocess
    quick_gelu = computes_quick_gelu(card) if has_quick_gelu(card.model) else None
    return ModelOptions(quick_gelu, preprocess.mean, preprocess.std, preprocess.interpolation, preprocess.resize_mode)


def embed_image(encoder: Encoder, path: str) -> np.ndarray:
    """float32 [dim] of an image file. Raises InputError if it is missing or cannot be decoded."""
    return embed_picture(encoder, files.read_bytes(path), path)


def embed_picture(encoder: Encoder, data: bytes, name: str) -> np.ndarray:
    """float32 [dim] of an encoded image. name: for errors. Raises InputError if it cannot be decoded."""
    from ..images.decode import Undecodable
    from ..images.guarded import guarded_decode

    decoded = guarded_decode(data, encoder.card.preprocess, encoder.card.rules)
    if isinstance(decoded, Undecodable):
        raise InputError(f"{name}: {decoded.message}", "Give another picture")
    first: np.ndarray = encoder.images(decoded.pixels[None]).wait().rows[0]
    return first


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], EmbeddedTexts]]:
    """(a batch of the texts, their embeddings), in order."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        yield some, encoder.texts(some)
