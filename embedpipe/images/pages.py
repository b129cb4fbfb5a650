"""Contact sheets as HTML: one file, pictures and all, no scripts. Whatever a caption holds is shown, never run."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from .sheet import SheetCell, thumbnail

_THUMBNAIL_PX = 256


def contact_page(cells: Sequence[SheetCell], title: str) -> bytes:
    """The page of the cells, in their order. Pictures that do not decode leave a grey field."""
    figures = "\n".join(
        f"<figure>{_picture(cell.image)}<figcaption>{_escaped(cell.text)}</figcaption></figure>" for cell in cells
    )
    return f"""<!doctype html>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_escaped(title)}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }}
figure {{ margin: 0; }}
img {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #eee; }}
figcaption {{ overflow-wrap: anywhere; }}
</style>
<h1>{_escaped(title)}</h1>
<main>
{figures}
</main>
""".encode()


def _escaped(text: str) -> str:
    # A lone surrogate, as JSON may hold, has no UTF-8.
    return html.escape(text.encode("utf-8", "replace").decode())


def _picture(data: bytes | None) -> str:
    stream = io.BytesIO()
    thumbnail(data, _THUMBNAIL_PX).save(stream, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
