"""Contact sheets: images in a grid, each with a line or two of text under it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..visible import visible
from .lettering import Lettering
from .thumbnail import small_picture

_MARGIN = 8
_LINES, _LINE_PX = 3, 15
_BACKGROUND, _INK, _EMPTY = (255, 255, 255), (30, 30, 30), (235, 235, 235)


@dataclass(frozen=True, slots=True)
class SheetCell:
    """One image (encoded bytes, or None if unavailable) and its text."""

    image: bytes | None
    text: str


def contact_sheet(cells: Sequence[SheetCell], title: str = "", columns: int = 5, cell_px: int = 160) -> bytes:
    """A PNG of the cells in rows of `columns`. Undecodable images are shown as a grey box."""
    small, large = Lettering(12), Lettering(18)
    text_px = _LINES * _LINE_PX
    top = 40 if title else _MARGIN
    across = max(1, min(columns, len(cells)))
    down = -(-len(cells) // across)
    width = max(across * (cell_px + _MARGIN) + _MARGIN, 320)
    sheet = Image.new("RGB", (width, top + down * (cell_px + text_px + _MARGIN) + _MARGIN), _BACKGROUND)
    if title:
        large.draw(sheet, (_MARGIN, 10), large.cut(visible(title), width - 2 * _MARGIN), _INK)
    for i, cell in enumerate(cells):
        left = _MARGIN + (i % across) * (cell_px + _MARGIN)
        upper = top + (i // across) * (cell_px + text_px + _MARGIN)
        picture = thumbnail(cell.image, cell_px)
        sheet.paste(picture, (left + (cell_px - picture.width) // 2, upper + (cell_px - picture.height) // 2))
        for line, text in enumerate(small.wrapped(visible(cell.text), cell_px, _LINES)):
            small.draw(sheet, (left, upper + cell_px + 1 + line * _LINE_PX), text, _INK)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def thumbnail(data: bytes | None, side: int) -> Image.Image:
    """The image on white, at most `side` px per side; a grey box if there is none, or it cannot be decoded."""
    picture = small_picture(data, side) if data is not None else None
    return picture if picture is not None else Image.new("RGB", (side, side), _EMPTY)
