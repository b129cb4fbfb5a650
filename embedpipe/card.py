"""The model card of an embedding data set: what made the numbers, in enough detail to make them again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes the model's input; the values come from the model's own configuration.

    size: (height, width) in pixels. mean, std: per RGB channel, for values in 0..1. interpolation: bicubic, bilinear or
    random. resize_mode: shortest (resize the shorter side, crop the centre), longest (pad with fill_color) or squash.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: int


UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PredictionCard:
    """What predicted the image embeddings of a data set from its text embeddings.

    kind: of prior. sha256: of its configuration and weights. sampling: how it was sampled, plain values.
    """

    kind: str
    sha256: str
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Model, weights, preprocessing and number format of an embedding data set.

    `weights_sha256` hashes names, dtypes, shapes and bytes of the state dict. Two data sets belong together when their
    `fingerprint()` is equal: the names a user typed for the model (`model`, `pretrained`) are not part of it.
    predicted_by: None where the image embeddings were made from images. Predicted ones have another fingerprint, so
    that nothing takes them for the real thing.
    """

    model: str
    pretrained: str
    weights_sha256: str
    dim: int
    dtype: str
    normalised: bool
    precision: str
    decode: str
    preprocess: PreprocessSpec
    tokenizer: str
    context_length: int
    predicted_by: PredictionCard | None = None

    @property
    def known(self) -> bool:
        """Whether it is known what made the numbers: False for data sets that others wrote, see `unknown_card`."""
        return not self.weights_sha256.startswith(UNKNOWN)

    def fingerprint(self) -> str:
        """Hex sha256 over everything that decides the numbers."""
        facts = self.facts()
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What the fingerprint is made of, as plain values."""
        facts = dataclasses.asdict(self)
        del facts["model"], facts["pretrained"]
        if self.predicted_by is None:
            del facts["predicted_by"]  # Absent rather than null: data sets from before there was this keep their print.
        return facts

    def of_encoder(self) -> EncoderCard:
        """The card of the encoder alone: what a query must be encoded with."""
        return dataclasses.replace(self, predicted_by=None)


def card_from(values: Mapping[str, Any]) -> EncoderCard:
    """What `dataclasses.asdict` made of a card, read back. Raises ValueError if it is none."""
    return pydantic.TypeAdapter(EncoderCard).validate_python(values)


def unknown_card(dim: int, dtype: str, normalised: bool, identity: str, model: str = UNKNOWN) -> EncoderCard:
    """The card of embeddings whose encoder left no record. `identity`: equal for what may be taken as of one encoder.

    `model` is what somebody says of them; nothing depends on it.
    """
    no_preprocess = PreprocessSpec((0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), UNKNOWN, UNKNOWN, 0)
    return EncoderCard(
        model=model,
        pretrained="",
        weights_sha256=f"{UNKNOWN}: {identity}",
        dim=dim,
        dtype=dtype,
        normalised=normalised,
        precision=UNKNOWN,
        decode=UNKNOWN,
        preprocess=no_preprocess,
        tokenizer=UNKNOWN,
        context_length=0,
    )
