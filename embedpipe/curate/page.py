"""An HTML page of pairs near the threshold: the eye decides where it should lie."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_THUMBNAIL_PX = 192


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows and their cosine. left, right: what to say of each. pictures: encoded bytes, or None."""

    cosine: float
    dropped: bool
    left: str
    right: str
    left_picture: bytes | None
    right_picture: bytes | None


def page(title: str, threshold: float, pairs: Sequence[Pair]) -> bytes:
    """The page, pictures included: one file, no scripts."""
    rows = "\n".join(_row(pair) for pair in sorted(pairs, key=lambda pair: -pair.cosine))
    text = f"""<!doctype html>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
td {{ padding: 6px 12px; vertical-align: top; border-bottom: 1px solid #ddd; max-width: 18em; }}
.dropped {{ background: #fbeaea; }}
</style>
<h1>{html.escape(title)}</h1>
<p>Pairs of rows around the threshold of {threshold:g}, most alike first. Of those in red the right one was dropped.</p>
<table>
<tr><th>cosine</th><th>kept</th><th>the other</th></tr>
{rows}
</table>
"""
    return text.encode()


def _row(pair: Pair) -> str:
    cells = "".join(
        f"<td>{_picture(picture)}<br>{html.escape(said)}</td>"
        for picture, said in ((pair.left_picture, pair.left), (pair.right_picture, pair.right))
    )
    return f'<tr class="{"dropped" if pair.dropped else "kept"}"><td>{pair.cosine:.4f}</td>{cells}</tr>'


def _picture(data: bytes | None) -> str:
    if data is None:
        return "<i>no picture</i>"
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB")
            small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    except (OSError, ValueError, SyntaxError):
        return "<i>no picture</i>"
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
