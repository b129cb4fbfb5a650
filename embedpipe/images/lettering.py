"""Text on pictures, in any script: each letter in the first font that has it, right-to-left runs from the right.

The fonts of the package manimgx-fonts come first, then manimgx-fonts-cjk (the extra `cjk`), then those of the system. A
letter that none of them has is written out (`\\u65e5`), never drawn as a box.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

Ink = tuple[int, int, int]
_Font = ImageFont.FreeTypeFont
_File = tuple[str, int]  # a font's path and its number in a collection; an empty path is Pillow's own

_OWN: _File = ("", 0)
_MEASURED_PX = 20  # which letters a font has does not depend on its size
_UNASSIGNED = "\U0010ffff"
_REGULAR = 400
_JAPANESE, _KOREAN, _CHINESE = range(3)  # faces of Noto Sans CJK, which draw the same Han letters differently
_FC_MATCH_S = 5
_ASKS = iter(range(100))  # of a process each: beyond that, letters are written out
_ELSEWHERE = (  # where there is no fontconfig: macOS, then Windows
    "/System/Library/Fonts/Supplemental/Arial Unicode.ttf",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/AppleSDGothicNeo.ttc",
    *(f"C:/Windows/Fonts/{name}" for name in ("segoeui.ttf", "YuGothR.ttc", "msyh.ttc", "malgun.ttf", "seguiemj.ttf")),
)
_MARKS = frozenset({"Mn", "Me", "Mc"})
_RIGHT_TO_LEFT = frozenset({"R", "AL"})


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring letters of one font and direction."""

    text: str
    font: _Font
    leftwards: bool


@dataclass(frozen=True, slots=True)
class Lettering:
    """Draws and measures lines of text at `size` pixels."""

    size: int

    def width(self, text: str) -> int:
        """Of one line, in pixels."""
        return round(sum(_length(run) for run in _in_order(_runs(text, self.size))))

    def draw(self, picture: Image.Image, at: tuple[int, int], text: str, ink: Ink) -> None:
        """Draw one line whose upper left corner is `at`."""
        pen, left = ImageDraw.Draw(picture), float(at[0])
        for run in _in_order(_runs(text, self.size)):
            pen.text((left, at[1] + self.size), run.text, ink, run.font, anchor="ls", direction=_direction(run))
            left += _length(run)

    def wrapped(self, text: str, width: int, most: int) -> list[str]:
        """`text` in at most `most` lines of `width` pixels; where it goes on, the last one ends with …"""
        bounded = " ".join(text[: most * width].split())
        lines = [""]
        for piece in _pieces(bounded):
            for part in self._parts(piece, width):
                if lines[-1] and self.width((lines[-1] + part).rstrip()) > width:
                    lines.append("")
                if len(lines) > most:
                    return [*map(str.rstrip, lines[: most - 1]), self.cut(f"{lines[most - 1]}{part}", width, True)]
                lines[-1] += part
        return [line.rstrip() for line in lines]

    def cut(self, text: str, width: int, always: bool = False) -> str:
        """`text`, or as much of it as fits into `width` pixels with … after it. always: with … in any case."""
        text = text[:width]
        if not always and self.width(text) <= width:
            return text
        return self._that_fits(text, width - self.width(" …")).rstrip() + " …"

    def _parts(self, piece: str, width: int) -> Iterator[str]:
        while len(piece) > 1 and self.width(piece.rstrip()) > width:
            head = self._that_fits(piece, width)
            yield head
            piece = piece[len(head) :]
        yield piece

    def _that_fits(self, text: str, width: int) -> str:
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle]) <= width else (low, middle - 1)
        return text[:low]


def _pieces(text: str) -> Iterator[str]:
    """What a line may be broken between: words with the blank after them, and letters of scripts without blanks."""
    for word in text.split(" "):
        start = 0
        for i, letter in enumerate(word):
            if i > start and unicodedata.east_asian_width(letter) == "W":
                yield word[start:i]
                start = i
        yield f"{word[start:]} "


def _runs(text: str, size: int) -> list[_Run]:
    """`text` in reading order, cut where font or direction change."""
    face = _face(text)
    plain = _packaged(face)[0]
    letters: list[tuple[str, _File]] = []
    for letter in text:
        if letters and (unicodedata.category(letter) in _MARKS or letter == "\ufe0f"):
            letters.append((letter, letters[-1][1]))  # on the letter before it
        elif letter == " ":
            letters.append((letter, plain))
        else:
            file = file_of(letter, face)
            escaped = letter.encode("ascii", "backslashreplace").decode()
            letters.append((letter, file) if file is not None else (escaped, plain))
    cut = zip(letters, _directions(text), strict=True)
    return [
        _Run("".join(letter for (letter, _), _ in group), _font(file, size), leftwards)
        for (file, leftwards), group in itertools.groupby(cut, key=lambda it: (it[0][1], it[1]))
    ]


def _directions(text: str) -> list[bool]:
    """Whether each letter runs leftwards. Blanks and signs do as both their neighbours do, or else as the line."""
    strong = [_leftwards(letter) for letter in text]
    line = next((way for way in strong if way is not None), False)
    before, after = line, [line] * len(text)
    for i in range(len(text) - 2, -1, -1):
        following = strong[i + 1]
        after[i] = after[i + 1] if following is None else following
    found = []
    for way, following in zip(strong, after, strict=True):
        before = before if way is None else way
        found.append(way if way is not None else before if before == following else line)
    return found


def _leftwards(letter: str) -> bool | None:
    """Whether a letter is written from right to left; None for what takes its neighbours' direction."""
    kind = unicodedata.bidirectional(letter)
    return kind in _RIGHT_TO_LEFT if kind in ("L", "EN", "AN") or kind in _RIGHT_TO_LEFT else None


def _in_order(runs: list[_Run]) -> list[_Run]:
    """Runs from left to right: neighbours that run leftwards the other way round, and all if the first of them does."""
    groups = [list(group) for _, group in itertools.groupby(runs, key=lambda run: run.leftwards)]
    for group in groups:
        if group[0].leftwards:
            group.reverse()
    return [run for group in (reversed(groups) if runs and runs[0].leftwards else groups) for run in group]


def _length(run: _Run) -> float:
    return run.font.getlength(run.text, direction=_direction(run))


def _direction(run: _Run) -> str | None:
    shaped = run.font.layout_engine == ImageFont.Layout.RAQM  # else letters are neither joined nor turned around
    return ("rtl" if run.leftwards else "ltr") if shaped else None


def _face(text: str) -> int:
    """The face for Han letters: by the letters of one language only that are among them."""
    if any("\u3040" <= letter <= "\u30ff" for letter in text):
        return _JAPANESE
    return _KOREAN if any("\uac00" <= letter <= "\ud7a3" for letter in text) else _CHINESE


@functools.lru_cache(maxsize=20_000)
def file_of(letter: str, face: int = _CHINESE) -> _File | None:
    """The first font that has a letter; None if there is none on this machine, which is logged."""
    for file in _packaged(face):
        if _has(file, letter):
            return file
    system = _of_system(letter)
    if system is None:
        _say_missing()
    return system


@functools.cache
def _say_missing() -> None:
    logger.warning(
        "letters that no font here has are written out on pictures: pip install 'embedpipe[cjk]' brings more"
    )


@functools.cache
def _packaged(face: int) -> tuple[_File, ...]:
    """The fonts that packages bring, and Pillow's; Noto Sans, for Latin, Greek and Cyrillic, first."""
    found = [(str(path), 0) for path in _files_of("manimgx_fonts") if "Italic" not in path.name]
    found.sort(key=lambda file: not Path(file[0]).name.startswith("NotoSans["))
    return (*found, *((str(path), face) for path in _files_of("manimgx_fonts_cjk")), _OWN)


def _files_of(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted(path for place in places for path in Path(place).iterdir() if path.suffix in (".ttf", ".ttc", ".otf"))


def _of_system(letter: str) -> _File | None:
    """A font of the system that has a letter, as fontconfig says, or else one that the system brings."""
    asked = shutil.which("fc-match")
    files = [(path, 0) for path in _ELSEWHERE if Path(path).exists()]
    if asked is not None and next(_ASKS, None) is not None:
        pattern = f":charset={ord(letter):x}:color=false"
        words = [asked, "-f", "%{file}\n%{index}", pattern]
        said = subprocess.run(words, capture_output=True, text=True, timeout=_FC_MATCH_S, check=False).stdout.split(
            "\n"
        )
        files = [(said[0], int(said[1]))] if len(said) == 2 and said[1].isdecimal() else []
    return next((file for file in files if _has(file, letter)), None)


def _has(file: _File, letter: str) -> bool:
    """Whether a font draws a letter as itself, not as the box for letters it lacks."""
    try:
        font = _font(file, _MEASURED_PX)
    except OSError:
        return False
    drawn = font.getmask(letter)
    return letter.isspace() or (drawn.getbbox() is not None and bytes(drawn) != _box(file))


@functools.lru_cache(maxsize=100)
def _box(file: _File) -> bytes:
    return bytes(_font(file, _MEASURED_PX).getmask(_UNASSIGNED))


@functools.lru_cache(maxsize=200)
def _font(file: _File, size: int) -> _Font:
    if not file[0]:
        own = ImageFont.load_default(size=size)
        assert isinstance(own, _Font)
        return own
    font = ImageFont.truetype(file[0], size, file[1])
    try:
        axes = font.get_variation_axes()
    except OSError:  # not a variable font
        return font
    font.set_variation_by_axes([_REGULAR if b"eight" in axis["name"] else axis["default"] or 0 for axis in axes])
    return font
