"""An HTML page of rows around a cut, with their pictures: the eye decides where it should lie."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_THUMBNAIL_PX = 160


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of a data set. said: its key and caption. picture: encoded bytes, or None where it is not to be had."""

    said: str
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class Line:
    """Rows side by side, what is said of them, and whether they (of a pair: the last) are dropped."""

    said: str
    dropped: bool
    shown: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a title; heads: over its columns, if they mean something."""

    title: str
    lines: Sequence[Line]
    heads: Sequence[str] = ()


def page(title: str, sections: Sequence[Section]) -> bytes:
    """The page, pictures included: one file, no scripts. What is dropped is on red."""
    text = f"""<!doctype html>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th {{ text-align: left; padding: 6px 12px; }}
td {{ padding: 6px 12px; vertical-align: top; border-bottom: 1px solid #ddd; width: {_THUMBNAIL_PX}px; }}
td div {{ overflow-wrap: anywhere; font-size: 12px; max-height: 6em; overflow: hidden; }}
.dropped {{ background: #fbeaea; }}
</style>
<h1>{html.escape(title)}</h1>
{"".join(map(_section, sections))}"""
    return text.encode()


def _section(section: Section) -> str:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in section.heads)
    lines = "\n".join(map(_line, section.lines))
    return f"<h2>{html.escape(section.title)}</h2>\n<table>\n<tr>{heads}</tr>\n{lines}\n</table>\n"


def _line(line: Line) -> str:
    cells = "".join(f"<td>{_picture(shown.picture)}<div>{html.escape(shown.said)}</div></td>" for shown in line.shown)
    return f'<tr class="{"dropped" if line.dropped else "kept"}"><td>{html.escape(line.said)}</td>{cells}</tr>'


def _picture(data: bytes | None) -> str:
    if data is None:
        return "<i>no picture</i>"
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB")
            small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "<i>no picture</i>"
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
