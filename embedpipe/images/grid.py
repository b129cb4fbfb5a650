"""Images in a grid, as a PNG: samples from a training run."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_GAP_PX = 2
_BACKGROUND = 255


def grid_png(rows: Sequence[np.ndarray], side_px: int | None = None) -> bytes:
    """A PNG of rows of images, each row uint8 [n, c, h, w] with 3 channels or 1, on white.

    side_px: of each image; None uses the largest. Smaller ones are enlarged without smoothing.
    """
    side = side_px or max(row.shape[-1] for row in rows)
    across, step = max(len(row) for row in rows), side + _GAP_PX
    sheet = Image.new("RGB", (across * step + _GAP_PX, len(rows) * step + _GAP_PX), (_BACKGROUND,) * 3)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            planes = np.broadcast_to(picture, (3, *picture.shape[1:])) if len(picture) == 1 else picture[:3]
            image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
            shown = image if image.size == (side, side) else image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(shown, (_GAP_PX + x * step, _GAP_PX + y * step))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
