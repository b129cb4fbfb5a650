"""Nearest neighbours: the only room that knows faiss.

Names are loaded when they are first used: what only counts or clusters rows needs no encoder, and so no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import IndexCard, build_index, read_card
    from .query import Hit, embed_image, query_encoder, search

_HOMES = {
    "Hit": "query",
    "IndexCard": "build",
    "build_index": "build",
    "embed_image": "query",
    "query_encoder": "query",
    "read_card": "build",
    "search": "query",
}

__all__ = ["Hit", "IndexCard", "build_index", "embed_image", "query_encoder", "read_card", "search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
