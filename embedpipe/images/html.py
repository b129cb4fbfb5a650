"""Self-contained HTML pages: escaped text, embedded images and charts, no scripts, no network access."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from ..visible import visible
from .thumbnail import small_picture

_STYLE = """
body { font: 14px sans-serif; margin: clamp(8px, 3vw, 2em); color: #222; overflow-wrap: anywhere; }
table { display: block; overflow-x: auto; max-width: 100%; }
td, th { padding: 4px clamp(4px, 1vw, 12px); vertical-align: top; text-align: left;
  border-bottom: 1px solid #ddd; max-width: 24em;  min-width: 3em; }
svg { max-width: 100%; height: auto; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def document(title: str, body: str, style: str = "") -> bytes:
    """A page with that title. `body` is HTML; untrusted text in it must be escaped with `text`."""
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>{_STYLE}{style}</style>
<h1>{text(title)}</h1>
{body}
</html>
"""
    return page.encode("utf-8", "replace")


def text(value: Any) -> str:
    """Any value as escaped text, hidden characters made visible."""
    return html.escape(visible(str(value), one_line=False))


def html_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers are right-aligned with thousands separators, all else is escaped."""
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    lines = ["".join(map(_cell, row)) for row in rows]
    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in ([top] if any(head) else []) + lines), "</table>"])


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{text('' if value is None else value)}</td>"


def picture(data: bytes | None, side_px: int = 192) -> str:
    """A thumbnail of an encoded image, or a placeholder if there is none."""
    small = small_picture(data, side_px) if data is not None else None
    if small is None:
        return "<i>no picture</i>"
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def html_histogram(lower: float, upper: float, counts: Sequence[int], width: int = 480, height: int = 140) -> str:
    """Equal bins from `lower` to `upper` as an SVG of bars, the fullest one `height` pixels high."""
    most = max(*counts, 1)
    across = width / len(counts)
    bars = []
    for i, count in enumerate(counts):
        tall = height * count / most
        low, high = (lower + (upper - lower) * (i + side) / len(counts) for side in (0, 1))
        bars.append(
            f'<rect x="{i * across + 1:.1f}" y="{height - tall:.1f}" width="{across - 2:.1f}" height="{tall:.1f}">'
            f"<title>{low:.6g} to {high:.6g}: {count:,}</title></rect>"
        )
    labels = (
        f'<text x="0" y="{height + 16}">{lower:.6g}</text>'
        f'<text x="{width}" y="{height + 16}" text-anchor="end">{upper:.6g}</text>'
    )
    return (
        f'<svg width="{width}" height="{height + 22}" viewBox="0 0 {width} {height + 22}" font-size="12" fill="#4a78b0"'
        ' role="img">'
        f'{"".join(bars)}<g fill="#222">{labels}</g></svg>'
    )
