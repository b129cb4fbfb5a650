"""HTML pages of rows just above and below a threshold, with their images, for choosing it by eye."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..images.html import document, picture, text

_THUMBNAIL_PX = 160
_PAIR = 2
_PAIR_PX = 2 * _THUMBNAIL_PX + 24
_STYLE = f"""
.lines {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, {_PAIR_PX}px), 1fr)); gap: 8px; }}
.lines.wide {{ grid-template-columns: 100%; }}
.line {{ padding: 8px; border: 1px solid #ddd; }}
.line p {{ margin: 0 0 8px; }}
.cards {{ display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, {_THUMBNAIL_PX}px), 1fr)); }}
figure {{ margin: 0; }}
figure b {{ display: block; }}
figure img {{ max-width: 100%; display: block; }}
figcaption {{ font-size: 12px; max-height: 6em; overflow: hidden; }}
.dropped {{ background: #fbeaea; }}
"""


@dataclass(frozen=True, slots=True)
class RowCard:
    """One row of a data set. said: its key and caption. picture: encoded image, or None if unavailable."""

    said: str
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class Line:
    """Rows side by side, a note about them, and whether they (of a pair: the last) are dropped."""

    said: str
    dropped: bool
    shown: Sequence[RowCard]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a title. heads: of what a line says, and of each of its rows, if any."""

    title: str
    lines: Sequence[Line]
    heads: Sequence[str] = ()


def pairs_page(title: str, sections: Sequence[Section]) -> bytes:
    """The page with embedded images: one file, no scripts. Dropped rows are on red."""
    return document(title, "".join(map(_section, sections)), _STYLE)


def _section(section: Section) -> str:
    wide = " wide" if any(len(line.shown) > _PAIR for line in section.lines) else ""
    lines = "\n".join(_line(line, section.heads) for line in section.lines)
    return f'<h2>{text(section.title)}</h2>\n<div class="lines{wide}">\n{lines}\n</div>\n'


def _line(line: Line, heads: Sequence[str]) -> str:
    said, *names = heads or [""] * (1 + len(line.shown))
    cards = "".join(itertools.starmap(_card, zip(names, line.shown, strict=True)))
    what = " ".join(filter(None, (said, line.said)))
    kind = "dropped" if line.dropped else "kept"
    return f'<div class="line {kind}"><p>{text(what)}</p><div class="cards">{cards}</div></div>'


def _card(name: str, shown: RowCard) -> str:
    head = f"<b>{text(name)}</b>" if name else ""
    return f"<figure>{head}{picture(shown.picture, _THUMBNAIL_PX)}<figcaption>{text(shown.said)}</figcaption></figure>"
