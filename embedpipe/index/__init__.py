"""Nearest neighbours: the only room that knows faiss.

Names are loaded when they are first used: what only counts or clusters rows needs no encoder, and so no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asked import Asked, answers
    from .build import build_index
    from .card import IndexCard, read_card
    from .encoders import embed_image, encoder_of, query_encoder
    from .opened import check_index
    from .plan import BuildPlan, IndexConfig, plan_index
    from .query import Hit, Searcher, row_of_key, search
    from .results import save_results
    from .tables import read_embeddings, read_queries

_HOMES = {
    "Asked": "asked",
    "BuildPlan": "plan",
    "Hit": "query",
    "IndexCard": "card",
    "IndexConfig": "plan",
    "Searcher": "query",
    "answers": "asked",
    "build_index": "build",
    "check_index": "opened",
    "embed_image": "encoders",
    "encoder_of": "encoders",
    "plan_index": "plan",
    "query_encoder": "encoders",
    "read_card": "card",
    "read_embeddings": "tables",
    "read_queries": "tables",
    "row_of_key": "query",
    "save_results": "results",
    "search": "query",
}

__all__ = [
    "Asked",
    "BuildPlan",
    "Hit",
    "IndexCard",
    "IndexConfig",
    "Searcher",
    "answers",
    "build_index",
    "check_index",
    "embed_image",
    "encoder_of",
    "plan_index",
    "query_encoder",
    "read_card",
    "read_embeddings",
    "read_queries",
    "row_of_key",
    "save_results",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
