"""Contact sheets as HTML: one file with embedded images and no scripts; captions are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from .html import document, text
from .sheet import SheetCell, thumbnail

_THUMBNAIL_PX = 256
_STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }
figure { margin: 0; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #eee; }
figcaption { overflow-wrap: anywhere; }
"""


def contact_page(cells: Sequence[SheetCell], title: str) -> bytes:
    """The page of the cells, in order. Undecodable images are shown as a grey box."""
    figures = "\n".join(
        f"<figure>{_picture(cell.image)}<figcaption>{text(cell.text)}</figcaption></figure>" for cell in cells
    )
    return document(title, f"<main>\n{figures}\n</main>", _STYLE)


def _picture(data: bytes | None) -> str:
    stream = io.BytesIO()
    thumbnail(data, _THUMBNAIL_PX).save(stream, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
