"""Image-text data, from a list of URLs to CLIP embeddings on disk.

    import embedpipe
    embedpipe.fetch("urls.csv", "shards", embedpipe.FetchConfig())
    embedpipe.encode("shards", "emb", embedpipe.EncodeConfig(embedpipe.EncoderConfig("ViT-B-32", "openai")))
    data = embedpipe.EmbeddingDataset("emb")
    embedpipe.build_index("emb")
    hits = embedpipe.search(data, data.text[0], k=5)
    embedpipe.verify("emb", embedpipe.VerifyConfig(deep=True)).whole

Names are imported lazily, on first use, so `import embedpipe` itself is cheap. `embedpipe.fetch`, `embedpipe.encode`
and `embedpipe.export` are callable packages, see `embedpipe.callable_package`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curate import DedupConfig, FilterConfig, export_images
    from .curate.dedup.job import dedup
    from .curate.filter.job import filter
    from .encode.base import EncoderConfig
    from .encode.batching import BatchingConfig
    from .encode.forecast import forecast
    from .encode.job import EncodeConfig, plan_encode
    from .execute import Cluster
    from .export import ExportConfig
    from .fetch import FetchConfig
    from .index import IndexConfig, Searcher, build_index, check_index, plan_index, query_encoder, search
    from .info import describe
    from .load import EmbeddingDataset, EmbeddingLoader, Foreign
    from .load.images.join import join_images
    from .load.images.loader import ImageLoader, ImageOptions
    from .load.images.source import open_source
    from .lock import Part
    from .merge import MergeConfig
    from .predict import predict_images
    from .subset import read_subset, write_subset
    from .verify import VerifyConfig

_HOMES = {
    "Cluster": "execute",
    "DedupConfig": "curate",
    "EmbeddingDataset": "load",
    "EmbeddingLoader": "load",
    "EncodeConfig": "encode.job",
    "EncoderConfig": "encode.base",
    "ExportConfig": "export",
    "FetchConfig": "fetch",
    "FilterConfig": "curate",
    "ImageLoader": "load.images.loader",
    "ImageOptions": "load.images.loader",
    "IndexConfig": "index",
    "Searcher": "index",
    "Foreign": "load",
    "MergeConfig": "merge",
    "Part": "lock",
    "BatchingConfig": "encode.batching",
    "VerifyConfig": "verify",
    "build_index": "index",
    "check_index": "index",
    "dedup": "curate.dedup.job",
    "describe": "info",
    "export_images": "curate",
    "filter": "curate.filter.job",
    "join_images": "load.images.join",
    "open_source": "load.images.source",
    "forecast": "encode.forecast",
    "plan_encode": "encode.job",
    "plan_index": "index",
    "predict_images": "predict",
    "query_encoder": "index",
    "read_subset": "subset",
    "search": "index",
    "write_subset": "subset",
}
_ROOMS = ("encode", "export", "fetch", "merge", "verify")

__all__ = [
    "BatchingConfig",
    "Cluster",
    "DedupConfig",
    "EmbeddingDataset",
    "EmbeddingLoader",
    "EncodeConfig",
    "EncoderConfig",
    "ExportConfig",
    "FetchConfig",
    "FilterConfig",
    "Foreign",
    "ImageLoader",
    "ImageOptions",
    "IndexConfig",
    "MergeConfig",
    "Part",
    "Searcher",
    "VerifyConfig",
    "build_index",
    "check_index",
    "dedup",
    "describe",
    "export_images",
    "filter",
    "forecast",
    "join_images",
    "open_source",
    "plan_encode",
    "plan_index",
    "predict_images",
    "query_encoder",
    "read_subset",
    "search",
    "write_subset",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
