"""Nearest-neighbour indexes: the only package that uses faiss.

Names are imported lazily: counting or clustering rows needs no encoder, and so no torch. The package itself is
callable: `embedpipe.index(emb, config)` is `embedpipe.index.build.build_index`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..callable_package import callable_as

if TYPE_CHECKING:
    from .build import build_index
    from .card import IndexCard, read_card
    from .index_file import check_index
    from .plan import BuildPlan, IndexConfig, plan_index
    from .query import Query, run_queries, search, search_many
    from .query_files import read_embeddings, read_queries
    from .query_model import embed_image, encoder_of, query_encoder
    from .results import save_results
    from .searcher import Hit, Searcher, row_of_key

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
    "embed_image": "query_model",
    "encoder_of": "query_model",
    "plan_index": "plan",
    "query_encoder": "query_model",
    "read_card": "card",
    "read_embeddings": "query_files",
    "read_queries": "query_files",
    "row_of_key": "searcher",
    "save_results": "results",
    "search": "query",
    "search_many": "query",
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
    "search_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


callable_as(__name__, ".build:build_index")
