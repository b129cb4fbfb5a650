"""The model card of an embedding data set: everything that determines the embeddings, so they can be reproduced."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from ..plural import in_full


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """Image preprocessing, with values from the model's own configuration.

    size: (height, width) in pixels. mean, std: per RGB channel, for values in 0..1. interpolation: bicubic, bilinear or
    random. resize_mode: shortest (resize the shorter side, crop the centre), longest (pad with fill_color) or squash.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: int


@dataclass(frozen=True, slots=True)
class ImageRules:
    """Handling of image features other than pixels, before resizing: each `ignored`, or the name of the conversion.

    transparency: an alpha channel, or a palette's: the colour of the background that it is composited over.
    orientation: EXIF. colour_profile: an embedded profile. depth: channels of more than eight bits; None, and no part
    of the fingerprint, where they are left to Pillow's own conversion.
    """

    transparency: str
    orientation: str
    colour_profile: str
    depth: str | None = None


# As open_clip's own transform: what data sets were made with before embedpipe had rules, and other tools' data.
OPEN_CLIP_RULES = ImageRules(transparency="ignored", orientation="ignored", colour_profile="ignored")


@dataclass(frozen=True, slots=True)
class TowerCard:
    """What determines a tower's outputs besides its weights, in terms independent of library class names.

    activation: gelu, quick_gelu, gelu_tanh, relu, silu …; several in alphabetical order, joined by `+`. pooling: how
    positions are pooled to a vector: tok, avg, map, attention, argmax, last …
    """

    activation: str
    pooling: str


@dataclass(frozen=True, slots=True)
class TextPreprocessSpec:
    """Caption cleaning before tokenisation: lower, whitespace or canonicalize; other tokenizer options by name."""

    clean: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


UNKNOWN = "unknown"
BEFORE_ACTIVATION = "written before the activation was recorded"

# Fields missing from version 0.1 cards. An absent field is not part of the fingerprint.
_SINCE_V2 = ("image_tower", "text_tower", "text_preprocess", "image_rules")


@dataclass(frozen=True, slots=True)
class PredictionCard:
    """The prior that predicted a data set's image embeddings from its text embeddings.

    kind: the type of prior. sha256: of its configuration and weights. sampling: sampler options, as plain values.
    """

    kind: str
    sha256: str
    sampling: dict[str, Any]


class Likeness(enum.Enum):
    """The result of comparing two cards. UNRECORDED: equal except for fields that the older one did not record."""

    SAME = "same"
    UNRECORDED = "unrecorded"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Model, weights, preprocessing and number format of an embedding data set.

    `weights_sha256` hashes names, dtypes, shapes and bytes of the state dict. Two data sets are compatible when their
    `fingerprint()` is equal: the names a user typed for the model (`model`, `pretrained`) are not part of it.
    predicted_by: None if the image embeddings were computed from images. Predicted ones have another fingerprint, so
    they cannot be mistaken for real ones. image_tower, text_tower, text_preprocess, image_rules: None in cards from
    version 0.1, which did not record them; such a card keeps its version 0.1 fingerprint.
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
    image_tower: TowerCard | None = None
    text_tower: TowerCard | None = None
    text_preprocess: TextPreprocessSpec | None = None
    image_rules: ImageRules | None = None

    @property
    def known(self) -> bool:
        """Whether the encoder is known: False for other tools' data sets, see `unknown_card`."""
        return not self.weights_sha256.startswith(UNKNOWN)

    @property
    def fingerprint_version(self) -> int:
        """1 for the fields of version 0.1, 2 if the activation and all else that determines the outputs is recorded."""
        return 1 if any(getattr(self, name) is None for name in _SINCE_V2) else 2

    @property
    def dated(self) -> bool:
        """Whether version 0.1 wrote the card (`BEFORE_ACTIVATION`). False for other tools' data: nothing is known."""
        return self.known and self.fingerprint_version == 1

    @property
    def rules(self) -> ImageRules:
        """The rules by which the images were decoded: open_clip's, where they are not recorded."""
        return self.image_rules or OPEN_CLIP_RULES

    def fingerprint(self) -> str:
        """Hex sha256 over all recorded fields that determine the embeddings."""
        facts = self.facts()
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """The contents of the fingerprint, as plain values."""
        facts = dataclasses.asdict(self)
        del facts["model"], facts["pretrained"]
        # Absent rather than null, so that older data sets keep their fingerprint.
        for name in ("predicted_by", *_SINCE_V2):
            if facts[name] is None:
                del facts[name]
        if self.image_rules is not None and self.image_rules.depth is None:
            del facts["image_rules"]["depth"]
        return facts

    def as_version_0_1(self) -> EncoderCard:
        """The card reduced to the fields of version 0.1, with the fingerprint that version 0.1 gave the encoder."""
        return dataclasses.replace(self, image_tower=None, text_tower=None, text_preprocess=None, image_rules=None)

    def compare(self, other: EncoderCard) -> Likeness:
        """Whether two cards describe the same encoder, as far as both record it."""
        if self.fingerprint() == other.fingerprint():
            return Likeness.SAME
        one_is_dated = self.dated != other.dated and self.known and other.known
        if one_is_dated and self.as_version_0_1().fingerprint() == other.as_version_0_1().fingerprint():
            return Likeness.UNRECORDED
        return Likeness.OTHER

    def of_encoder(self) -> EncoderCard:
        """The card of the encoder alone, which a query must be encoded with."""
        return dataclasses.replace(self, predicted_by=None)


def in_words(card: EncoderCard) -> list[tuple[str, str]]:
    """What determines the embeddings besides the weights, as (name, text) for display, as far as it is known."""
    if card.image_tower is None or card.text_tower is None or card.text_preprocess is None:
        return [("pictures", rules_in_words(card.rules))] if card.dated else []
    towers = (("image", card.image_tower), ("text", card.text_tower))
    spec = card.preprocess
    return [
        ("towers", "; ".join(f"{side} {tower.activation}, pooled by {tower.pooling}" for side, tower in towers)),
        (
            "images",
            f"{spec.size[0]}×{spec.size[1]}, {spec.resize_mode}, {spec.interpolation}, mean {in_full(spec.mean)}, "
            f"std {in_full(spec.std)}",
        ),
        ("pictures", rules_in_words(card.rules)),
        ("captions", f"cleaned by {card.text_preprocess.clean}, at most {card.context_length} tokens"),
    ]


def rules_in_words(rules: ImageRules) -> str:
    """Image rules as one line for display."""
    over = rules.transparency
    return ", ".join(
        [
            "transparency ignored" if over == "ignored" else f"transparency over {over}",
            f"orientation {'applied' if rules.orientation == 'upright' else rules.orientation}",
            f"colour profiles {'to sRGB' if rules.colour_profile == 'srgb' else rules.colour_profile}",
            f"deep channels {rules.depth or 'as Pillow converts them'}",
        ]
    )


def card_from(values: Mapping[str, Any]) -> EncoderCard:
    """Rebuild a card from its `dataclasses.asdict` form. Raises ValueError if it is invalid."""
    return pydantic.TypeAdapter(EncoderCard).validate_python(values)


def unknown_card(dim: int, dtype: str, normalised: bool, identity: str, model: str = UNKNOWN) -> EncoderCard:
    """The card of embeddings from an unrecorded encoder. `identity`: equal for data assumed to be from one encoder.

    `model` is a description by the user; nothing depends on it.
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
