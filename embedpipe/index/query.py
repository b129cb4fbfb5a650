"""The rows nearest to a text, an image or an embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..encode import Encoder, EncoderConfig, load_encoder
from ..errors import InputError, RunMismatch
from ..images.decode import Undecodable, decode
from ..load import EmbeddingDataset
from ..manifest import refuse_difference
from .build import open_index


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: its row in the data set, cosine similarity to the query, and its metadata."""

    rank: int
    score: float
    row: int
    key: str
    caption: str | None
    src_shard: str
    metadata: dict[str, Any]


def query_encoder(
    dataset: EmbeddingDataset, model: str | None = None, pretrained: str | None = None, device: str = "cpu"
) -> Encoder:
    """The encoder that made `dataset`, loaded from where its card says, or from `model`/`pretrained`.

    Raises RunMismatch when the model found there is not the one the embeddings were made with, InputError when nobody
    knows which that is.
    """
    card = dataset.card
    if not card.known and model is None:
        raise InputError(
            f"{dataset.path}: which model made it is not known ({card.model})", "Give --model and --pretrained"
        )
    config = EncoderConfig(
        model=model or card.model,
        pretrained=(card.pretrained if model is None else "") if pretrained is None else pretrained,
    )
    encoder = load_encoder(config, device)
    if not card.known:
        if encoder.card.dim != card.dim:
            raise RunMismatch(
                f"{dataset.path}: its rows have {card.dim} values, those of {config.model} {encoder.card.dim}",
                "Give the model that made them",
            )
        return encoder
    # A query may be computed in another precision than the data: the model is what must be the same.
    same_format = replace(encoder.card, dtype=card.dtype, precision=card.precision, decode=card.decode)
    refuse_difference(dataset.path, card.facts(), same_format.facts(), "encoder")
    return encoder


def embed_image(encoder: Encoder, path: str) -> np.ndarray:
    """float32 [dim] of an image file. Raises InputError when it is missing or does not decode."""
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"{path}: {problem.strerror or problem}", "Check the path") from problem
    decoded = decode(data, encoder.card.preprocess)
    if isinstance(decoded, Undecodable):
        raise InputError(f"{path}: {decoded.message}", "Give a picture that Pillow can read")
    first: np.ndarray = encoder.images(decoded.pixels[None]).numpy()[0]
    return first


def search(dataset: EmbeddingDataset, query: np.ndarray, k: int = 10, modality: str = "image") -> list[Hit]:
    """The `k` rows of `dataset` whose `modality` embedding is nearest to `query` ([dim], L2-normalised), best first.

    Fewer when the data set has fewer rows.
    """
    if query.shape != (dataset.card.dim,):
        raise InputError(f"a query of shape {query.shape}; the data set's embeddings have {dataset.card.dim} values")
    index = open_index(dataset, modality)
    scores, rows = index.search(query[None].astype(np.float32), min(k, index.ntotal))
    return list(_hits(dataset, scores[0], rows[0]))


def _hits(dataset: EmbeddingDataset, scores: np.ndarray, rows: np.ndarray) -> Iterator[Hit]:
    found = dataset.rows([int(row) for row in rows])
    for rank, (score, row, metadata) in enumerate(zip(scores, rows, found, strict=True), start=1):
        yield Hit(
            rank=rank,
            score=float(score),
            row=int(row),
            key=str(metadata["key"]),
            caption=metadata["caption"] if isinstance(metadata["caption"], str) else None,
            src_shard=str(metadata["src_shard"]),
            metadata=metadata,
        )
