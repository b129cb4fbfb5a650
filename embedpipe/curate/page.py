"""HTML pages of rows just above and below a threshold, with their images, for choosing it by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..images.html import document, picture, text

_THUMBNAIL_PX = 160
_STYLE = f"""
td {{ width: {_THUMBNAIL_PX}px; }}
td div {{ font-size: 12px; max-height: 6em; overflow: hidden; }}
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
    """Lines under a title; heads: column headings, if any."""

    title: str
    lines: Sequence[Line]
    heads: Sequence[str] = ()


def pairs_page(title: str, sections: Sequence[Section]) -> bytes:
    """The page with embedded images: one file, no scripts. Dropped rows are on red."""
    return document(title, "".join(map(_section, sections)), _STYLE)


def _section(section: Section) -> str:
    heads = "".join(f"<th>{text(head)}</th>" for head in section.heads)
    lines = "\n".join(map(_line, section.lines))
    return f"<h2>{text(section.title)}</h2>\n<table>\n<tr>{heads}</tr>\n{lines}\n</table>\n"


def _line(line: Line) -> str:
    cells = "".join(
        f"<td>{picture(shown.picture, _THUMBNAIL_PX)}<div>{text(shown.said)}</div></td>" for shown in line.shown
    )
    return f'<tr class="{"dropped" if line.dropped else "kept"}"><td>{text(line.said)}</td>{cells}</tr>'
