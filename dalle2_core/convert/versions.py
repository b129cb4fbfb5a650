"""What DALLE2-pytorch's prior computed in which version. Read in its releases; weights do not say it themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Versions from `first` on, until the next era.

    attention, bias_scale, scaled_norms, text_padding, truncated_time: fields of PriorNetworkConfig.
    drops_text: the text was really dropped in training, so that guidance can work.
    self_cond: self-conditioning stood where it stands here; before, it took the learned query's place.
    null_text: the name of the learned text tokens' weights, or None.
    """

    first: tuple[int, int, int]
    attention: Literal["cosine", "dot"]
    bias_scale: float
    scaled_norms: Literal["none", "last", "all"]
    text_padding: Literal["learned", "masked"]
    truncated_time: bool
    drops_text: bool
    self_cond: bool
    null_text: str | None

    @property
    def name(self) -> str:
        """Its first version, as text."""
        return ".".join(map(str, self.first))


# The relaxation of Ding et al. 2105.13290 multiplied the logits after the bias was added, and so the bias with them.
# From 0.16.9 to 1.10.7 sines and cosines of the (whole) timestep were cast to whole numbers.
ERAS = (
    VersionRange((0, 16, 0), "dot", 1.0, "none", "masked", False, True, False, None),
    VersionRange((0, 16, 1), "dot", 1024.0, "none", "masked", False, True, False, None),
    VersionRange((0, 16, 2), "dot", 1024.0, "all", "masked", False, True, False, None),
    VersionRange((0, 16, 9), "dot", 1024.0, "all", "masked", True, True, False, None),
    VersionRange((0, 23, 0), "dot", 1024.0, "all", "learned", True, False, False, "null_text_embed"),
    VersionRange((0, 23, 3), "dot", 128.0, "last", "learned", True, False, False, "null_text_embed"),
    VersionRange((1, 4, 3), "cosine", 1.0, "last", "learned", True, False, False, "null_text_embed"),
    VersionRange((1, 9, 0), "cosine", 1.0, "last", "learned", True, False, False, "null_text_encodings"),
    VersionRange((1, 10, 5), "cosine", 1.0, "last", "learned", True, True, False, "null_text_encodings"),
    VersionRange((1, 10, 8), "cosine", 1.0, "last", "learned", False, True, False, "null_text_encodings"),
    VersionRange((1, 12, 1), "cosine", 1.0, "last", "learned", False, True, True, "null_text_encodings"),
)


def era_of(version: tuple[int, ...]) -> VersionRange | None:
    """The era of a version, or None where it is older than all."""
    padded = (*version, 0, 0, 0)[:3]
    return next((era for era in reversed(ERAS) if era.first <= padded), None)


def eras_with(null_text: str | None) -> list[VersionRange]:
    """The eras whose weights have that name for the learned text tokens."""
    return [era for era in ERAS if era.null_text == null_text]
