"""Nearest-neighbour indexes: the only package that uses faiss.

Names are imported lazily: counting or clustering rows needs no encoder, and so no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build_index
    from .card import IndexCard, read_card
    from .embed_query import embed_image, encoder_of, query_encoder
    from .index_file import check_index
    from .plan import BuildPlan, IndexConfig, plan_index
    from .query import Query, run_queries
    from .query_files import read_embeddings, read_queries
    from .results import save_results
    from .searcher import Hit, Searcher, row_of_key, search

_HOMES = {
    "Query": "query",
    "BuildPlan": "plan",
    "Hit": "searcher",
    "IndexCard": "card",
    "IndexConfig": "plan",
    "Searcher": "searcher",
    "run_queries": "query",
    "build_index": "build",
    "check_index": "index_file",
    "embed_image": "embed_query",
    "encoder_of": "embed_query",
    "plan_index": "plan",
    "query_encoder": "embed_query",
    "read_card": "card",
    "read_embeddings": "query_files",
    "read_queries": "query_files",
    "row_of_key": "searcher",
    "save_results": "results",
    "search": "searcher",
}

__all__ = [
    "BuildPlan",
    "Hit",
    "IndexCard",
    "IndexConfig",
    "Query",
    "Searcher",
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
    "run_queries",
    "save_results",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
