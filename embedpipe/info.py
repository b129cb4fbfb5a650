"""What is in an output of ours: counts, sizes, rejects by reason, similarities, who made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import files, manifest
from .errors import InputError
from .fetch.outcome import HostFailures
from .fetch.report import worst_hosts
from .load import EmbeddingDataset
from .manifest import EMBEDDINGS, IMAGE_SHARDS

_BINS = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """How some numbers are spread: count, mean, the 5th, 50th and 95th percentile, and counts in ten equal bins.

    The bins reach from `least` to `most`, the smallest and the largest number.
    """

    n: int
    mean: float
    p05: float
    p50: float
    p95: float
    least: float
    most: float
    bins: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """What `info` tells. encoder, similarity and columns are None or empty for image shards.

    tokens, token_width: token states of all captions together, and how wide each is; None where none are stored.
    """

    path: str
    format: str
    shards: int
    planned: int
    rows: int
    rejected: int
    rejects: dict[str, int]
    retried: int
    hosts: tuple[HostFailures, ...]
    bytes: int
    encoder: dict[str, Any] | None
    fingerprint: str
    tokens: int | None
    token_width: int | None
    columns: tuple[str, ...]
    similarity: Spread | None
    options: dict[str, Any]
    versions: dict[str, str]


def describe(path: str, most_hosts: int = 0) -> OutputInfo:
    """Look at an output of `encode` or `fetch`, finished or not, or at a data set of others.

    Raises InputError or DatasetError.
    most_hosts: of image shards, name so many hosts with the most failed urls; reads all their tables.
    """
    if not files.exists(path):
        raise InputError(f"{path}: no such folder", "Check the path")
    run = manifest.read_run(path)
    dataset = EmbeddingDataset(path) if run is None or run.format == EMBEDDINGS else None
    if run is None:
        assert dataset is not None
        run = dataset.run
    entries = list(dataset.manifests if dataset is not None else manifest.read_manifests(path, run.shard_digits))
    total = manifest.totals(entries)
    return OutputInfo(
        path=path,
        format=run.format,
        shards=len(entries),
        planned=len(run.plan),
        rows=total.succeeded,
        rejected=sum(total.failed.values()),
        rejects=total.failed,
        retried=total.retried,
        hosts=worst_hosts(path, run, most_hosts) if run.format == IMAGE_SHARDS and most_hosts and entries else (),
        bytes=sum(entry.bytes() for entry in entries),
        encoder=run.encoder.facts() | {"model": run.encoder.model, "pretrained": run.encoder.pretrained}
        if run.encoder is not None
        else None,
        fingerprint=run.encoder.fingerprint() if run.encoder is not None else "",
        tokens=sum(entry.tokens or 0 for entry in entries) if run.token_width is not None else None,
        token_width=run.token_width,
        columns=dataset.column_names() if dataset is not None else tuple(run.columns),
        similarity=_similarity(dataset) if dataset is not None else None,
        options=run.options,
        versions=run.versions,
    )


def _similarity(dataset: EmbeddingDataset) -> Spread | None:
    values = dataset.column("similarity").drop_null().to_numpy() if len(dataset) else np.zeros(0)
    if not len(values):
        return None
    p05, p50, p95 = (float(p) for p in np.percentile(values, [5, 50, 95]))
    least, most = float(values.min()), float(values.max())
    counts, _ = np.histogram(values.astype(np.float64), _BINS, (least, most))
    bins = tuple(int(count) for count in counts)
    return Spread(len(values), float(values.mean(dtype=np.float64)), p05, p50, p95, least, most, bins)
