"""Nearest neighbours: the only room that knows faiss."""

from .build import IndexCard, build_index, read_card
from .query import Hit, embed_image, query_encoder, search

__all__ = ["Hit", "IndexCard", "build_index", "embed_image", "query_encoder", "read_card", "search"]
