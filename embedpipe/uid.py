"""Unique ids of image-text pairs, independent of shard and data set."""

from __future__ import annotations

import hashlib
import json


def uid(url: str | None, caption: str | None) -> str:
    """32 hex digits of the sha256 of `[url, caption]` as JSON."""
    text = json.dumps([url, caption], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
