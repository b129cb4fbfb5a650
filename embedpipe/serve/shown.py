"""Rows as a client is shown them: values that JSON has, and cards for a grid."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.responses import Response

from ..load import EmbeddingDataset
from ..redact import redacted

CARD_CHARACTERS = 300  # of a caption in a grid
_CARD_COLUMNS = ("key", "src_shard", "caption")


class JsonAnswer(Response):
    """JSON in ASCII: what is not finite is null, and what JSON lacks is written as text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(json_value(content), allow_nan=False, separators=(",", ":")).encode()


def json_value(value: Any) -> Any:
    """`value` with only what JSON can hold."""
    if isinstance(value, dict):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, np.generic):
        return json_value(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def cards(dataset: EmbeddingDataset, rows: np.ndarray, scores: np.ndarray | None = None) -> list[dict[str, Any]]:
    """The rows for a grid: row, key, source shard and the head of the caption, with the score of a search."""
    about = dataset.rows(rows.tolist(), _CARD_COLUMNS) if len(rows) else []
    found = []
    for place, (row, values) in enumerate(zip(rows.tolist(), about, strict=True)):
        caption = values["caption"] if isinstance(values["caption"], str) else None
        card = {**values, "row": row, "caption": caption[:CARD_CHARACTERS] if caption is not None else None}
        card["cut"] = caption is not None and len(caption) > CARD_CHARACTERS
        if scores is not None:
            card["score"] = float(scores[place])
        found.append(card)
    return found


def details(dataset: EmbeddingDataset, row: int, sources: Sequence[str]) -> dict[str, Any]:
    """All that is known of a row, and where it lies. Secrets of urls stay in its metadata, which are the user's."""
    shard = dataset.shards[dataset.shard_of(row)]
    (metadata,) = dataset.rows([row])
    place = {
        "data": redacted(dataset.path),
        "shard": shard.manifest.number,
        "row_in_shard": row - shard.start,
        "files": [record.path for record in shard.manifest.files],
        "image_shard": shard.manifest.source.name,
        "image_sources": [redacted(source) for source in sources],
    }
    return {"row": row, "metadata": metadata, "place": place}
