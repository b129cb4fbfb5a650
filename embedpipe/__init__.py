"""Image-text data from a list of URLs to CLIP embeddings on disk, and from those to a trained unCLIP prior and decoder.

    import embedpipe
    embedpipe.fetch("urls.csv", "shards", embedpipe.FetchConfig())
    embedpipe.encode("shards", "emb", embedpipe.EncodeConfig(embedpipe.EncoderConfig("ViT-B-32", "openai")))
    embedpipe.index("emb")
    hits = embedpipe.search("emb", "a red bicycle", k=5)
    embedpipe.train_prior("emb", "prior", preset="base", settings={"train.batch_size": 64})
    embedpipe.evaluate("prior", "emb").winners
    data = embedpipe.EmbeddingDataset("emb")

Every command is one call; docs/python.md lists them. Names are imported lazily, on first use, so `import embedpipe`
itself is cheap. `fetch`, `encode`, `index` and others are callable packages, see `embedpipe.callable_package`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clip_model.spec import ModelOptions
    from .consent import trust_model
    from .curate import DedupConfig, FilterConfig, export_images, plan_dedup, plan_filter, plan_images
    from .curate.dedup.job import dedup
    from .curate.filter.job import filter
    from .encode.base import EncoderConfig
    from .encode.batching import BatchingConfig
    from .encode.forecast import forecast
    from .encode.job import EncodeConfig, encode, plan_encode
    from .encode.partition import part_of
    from .execute import Cluster
    from .export import ExportConfig
    from .export.job import export, plan_export
    from .fetch import FetchConfig
    from .fetch.job import fetch, plan_fetch
    from .index import (
        IndexConfig,
        Query,
        Searcher,
        build_index,
        check_index,
        plan_index,
        query_encoder,
        save_results,
        search,
        search_many,
    )
    from .index.build import build_index as index
    from .info.contents import describe
    from .info.page import info
    from .load import EmbeddingDataset, EmbeddingLoader, Foreign
    from .load.images.join import join_images
    from .load.images.loader import ImageLoader, ImageOptions
    from .load.images.source import open_source
    from .lock import Part
    from .merge import MergeConfig, plan_merge
    from .merge.job import merge
    from .predict import predict_images
    from .serve import ServeConfig
    from .serve.job import serve
    from .subset import read_subset, write_subset
    from .takedown import TakedownConfig
    from .takedown.job import plan_takedown, takedown
    from .unclip import (
        SamplingConfig,
        plan_generation,
        plan_sampling,
        plan_train_all_priors,
        plan_train_clip,
        plan_train_decoder,
        plan_train_prior,
        plan_train_vae,
        train_all_priors,
        train_clip,
        train_decoder,
        train_prior,
        train_vae,
    )
    from .unclip.convert import convert
    from .unclip.evaluate.priors import evaluate_priors as evaluate
    from .unclip.generate.job import generate
    from .unclip.sample_prior import sample_prior
    from .verify import VerifyConfig
    from .verify.job import verify

_HOMES = {
    "BatchingConfig": "encode.batching",
    "Cluster": "execute",
    "DedupConfig": "curate",
    "EmbeddingDataset": "load",
    "EmbeddingLoader": "load",
    "EncodeConfig": "encode.job",
    "EncoderConfig": "encode.base",
    "ExportConfig": "export",
    "FetchConfig": "fetch",
    "FilterConfig": "curate",
    "Foreign": "load",
    "ImageLoader": "load.images.loader",
    "ImageOptions": "load.images.loader",
    "IndexConfig": "index",
    "MergeConfig": "merge",
    "ModelOptions": "clip_model.spec",
    "Part": "lock",
    "Query": "index",
    "SamplingConfig": "unclip",
    "Searcher": "index",
    "ServeConfig": "serve",
    "TakedownConfig": "takedown",
    "VerifyConfig": "verify",
    "build_index": "index",
    "check_index": "index",
    "convert": "unclip",
    "dedup": "curate.dedup.job",
    "describe": "info",
    "evaluate": "unclip",
    "export_images": "curate",
    "filter": "curate.filter.job",
    "forecast": "encode.forecast",
    "generate": "unclip",
    "join_images": "load.images.join",
    "open_source": "load.images.source",
    "part_of": "encode.partition",
    "plan_dedup": "curate",
    "plan_encode": "encode.job",
    "plan_export": "export.job",
    "plan_fetch": "fetch",
    "plan_filter": "curate",
    "plan_generation": "unclip",
    "plan_images": "curate",
    "plan_index": "index",
    "plan_merge": "merge",
    "plan_sampling": "unclip",
    "plan_takedown": "takedown.job",
    "plan_train_all_priors": "unclip",
    "plan_train_clip": "unclip",
    "plan_train_decoder": "unclip",
    "plan_train_prior": "unclip",
    "plan_train_vae": "unclip",
    "predict_images": "predict",
    "query_encoder": "index",
    "read_subset": "subset",
    "sample_prior": "unclip",
    "save_results": "index",
    "search": "index",
    "search_many": "index",
    "train_all_priors": "unclip",
    "train_clip": "unclip",
    "train_decoder": "unclip",
    "train_prior": "unclip",
    "train_vae": "unclip",
    "trust_model": "consent",
    "write_subset": "subset",
}
_ROOMS = ("encode", "export", "fetch", "index", "info", "merge", "serve", "takedown", "verify")

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
    "ModelOptions",
    "Part",
    "Query",
    "SamplingConfig",
    "Searcher",
    "ServeConfig",
    "TakedownConfig",
    "VerifyConfig",
    "build_index",
    "check_index",
    "convert",
    "dedup",
    "describe",
    "encode",
    "evaluate",
    "export",
    "export_images",
    "fetch",
    "filter",
    "forecast",
    "generate",
    "index",
    "info",
    "join_images",
    "merge",
    "open_source",
    "part_of",
    "plan_dedup",
    "plan_encode",
    "plan_export",
    "plan_fetch",
    "plan_filter",
    "plan_generation",
    "plan_images",
    "plan_index",
    "plan_merge",
    "plan_sampling",
    "plan_takedown",
    "plan_train_all_priors",
    "plan_train_clip",
    "plan_train_decoder",
    "plan_train_prior",
    "plan_train_vae",
    "predict_images",
    "query_encoder",
    "read_subset",
    "sample_prior",
    "save_results",
    "search",
    "search_many",
    "serve",
    "takedown",
    "train_all_priors",
    "train_clip",
    "train_decoder",
    "train_prior",
    "train_vae",
    "trust_model",
    "verify",
    "write_subset",
]


_RENAMED = {"StageConfig": "BatchingConfig"}  # names of version 0.1


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"embedpipe.{name} is called {_RENAMED[name]} now", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
