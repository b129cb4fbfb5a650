"""The rules by which a picture becomes pixels: their names in the model card, and what they mean.

Transparency is composited over a background, EXIF orientation applied, colour profiles converted to sRGB, deeper
channels scaled to eight bits. `OPEN_CLIP_RULES` ignore all four, as open_clip's own transform does.
"""

from __future__ import annotations

from PIL import ImageColor

from ..clip_model.encoder_card import ImageRules
from ..errors import OptionError

WHITE = "white"


def image_rules(background: str = WHITE) -> ImageRules:
    """The rules with that background: a CSS colour, by name or as #rrggbb. Raises OptionError for any other text."""
    return ImageRules(transparency=colour(background), orientation="upright", colour_profile="srgb", depth="scaled")


def colour(background: str) -> str:
    """A colour by the name that a card records: `white`, else #rrggbb. Raises OptionError if it is none."""
    try:
        red, green, blue = _channels(background.strip())
    except ValueError as problem:
        raise OptionError(
            f"`background={background!r}`: no colour without transparency", "Give a CSS colour: white, gray, '#ff8800'"
        ) from problem
    return WHITE if (red, green, blue) == (255, 255, 255) else f"#{red:02x}{green:02x}{blue:02x}"


def background_rgb(rules: ImageRules) -> tuple[int, int, int]:
    """The background's colour, 0..255 for each channel."""
    return _channels(rules.transparency)


def _channels(text: str) -> tuple[int, int, int]:
    channels = ImageColor.getrgb(text)
    if len(channels) != 3:
        raise ValueError("a background is opaque")
    return channels
