"""The questions of clip-retrieval's clients, answered as its back end does: written from what clip_client.py sends.

What that back end downloads at start (models of safety, violence, aesthetics) is not here: those fields are ignored, as
it ignores them without their models.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..errors import InputError
from .messages import Cut, KnnRequest, MetadataRequest, Term
from .served import ServedDataset
from .service import Service
from .shown import json_value

_COLUMNS = ("url", "image_path", "caption")
_SAME = 0.94  # the cosine from which clip-retrieval takes two results for one
_PICTURE_PX = 256


def indices_list(service: Service) -> list[str]:
    """The names of the data sets."""
    return list(service.served)


def knn(service: Service, asked: KnnRequest) -> list[dict[str, Any]]:
    """Nearest rows. Those beyond num_images have an id and a similarity only."""
    one = service.of(asked.indice_name or next(iter(service.served)))
    with service.metrics.timed("full_knn_request_time"):
        one.searcher(asked.modality)
        query = service.query(one, [_term(asked)], asked.modality)
        count = asked.num_result_ids or asked.num_images
        with service.metrics.timed("knn_index_time"):
            found = one.ranked(query, asked.modality, Cut(), None, count)
        rows, scores = found.rows[:count], found.scores[:count]
        if asked.deduplicate:
            with service.metrics.timed("dedup_time"):
                different = _different(one, rows, asked.modality)
            rows, scores = rows[different], scores[different]
        with service.metrics.timed("metadata_get_time"):
            about = _about(one, rows[: asked.num_images])
        about += [{}] * (len(rows) - len(about))
        pairs = zip(about, rows.tolist(), scores.tolist(), strict=True)
        return [{**known, "id": row, "similarity": score} for known, row, score in pairs]


def metadata_by_id(service: Service, asked: MetadataRequest) -> list[dict[str, Any]]:
    """All metadata of some rows."""
    one = service.of(asked.indice_name)
    for row in asked.ids:
        one.require_row(row)
    about = one.dataset.rows(asked.ids) if asked.ids else []
    return [{"id": row, "metadata": json_value(known)} for row, known in zip(asked.ids, about, strict=True)]


def _term(asked: KnnRequest) -> Term:
    if asked.use_mclip:
        raise InputError("use_mclip: this server has no multilingual CLIP", "Ask without it")
    if asked.text:
        return Term(text=asked.text)
    if asked.image is not None:
        return Term(image=asked.image)
    if asked.image_url is not None:
        raise InputError("image_url: this server opens no urls", "Send the picture itself, as image")
    if asked.embedding_input is not None:
        return Term(embedding=asked.embedding_input)
    raise InputError("nothing to search for", "Send text, image or embedding_input")


def _about(one: ServedDataset, rows: np.ndarray) -> list[dict[str, Any]]:
    names = tuple(name for name in _COLUMNS if name in one.dataset.column_names())
    about: list[dict[str, Any]] = one.dataset.rows(rows.tolist(), names) if len(rows) else []
    for row, known in zip(rows.tolist(), about, strict=True):
        if not known.get("url"):
            picture = one.pictures.jpeg(row, _PICTURE_PX)
            if picture is not None:
                known["image"] = base64.b64encode(picture).decode()
    return about


def _different(one: ServedDataset, rows: np.ndarray, side: str) -> np.ndarray:
    """The places of rows to keep: the first of each group that is joined by near-duplicates."""
    stored = one.dataset.require(side)[rows].astype(np.float32)
    alike = stored @ stored.T > _SAME
    seen, first = np.zeros(len(rows), bool), []
    for place in range(len(rows)):
        if seen[place]:
            continue
        first.append(place)
        group = np.zeros(len(rows), bool)
        group[place] = True
        edge = group
        while edge.any():
            edge = alike[edge].any(axis=0) & ~group
            group |= edge
        seen |= group
    return np.array(first, np.int64)
