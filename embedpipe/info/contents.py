"""The contents of an output: counts, sizes, rejects by reason, similarities, and the model or options behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import files, manifest
from ..accounts import Accounts
from ..columns import NORMS, measured, of_norm_1
from ..errors import InputError
from ..fetch.outcome import HostFailures
from ..fetch.report import hosts_that_failed
from ..load import EmbeddingDataset
from ..manifest import EMBEDDINGS, IMAGE_SHARDS
from ..progress import CutCaptions, Listener, Progress, silent

_BINS = 10
# Stored norms and captions are sampled in blocks of rows from evenly spread shards: enough for a histogram, however
# large the data set.
_SHARDS_LOOKED_AT = 64
_ROWS_OF_EACH = 512


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of some numbers: count, mean, the 5th, 50th and 95th percentile, and counts in ten equal bins.

    The bins span `least` to `most`, the smallest and the largest number; there is a single bin if all are equal.
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
    """The result of `info`. encoder, similarity, norms, captions, cut and columns are None or empty for image shards.

    norms: of the projections before normalisation, by modality, for rows where they are known; empty if the data set
    has none. stored_norms: of the stored rows, and captions: characters per caption, both of a sample of rows. cut:
    captions longer than the model's context, None if not counted. merged: the data sets merged into this one.
    accounts: what became of everything in the input shards; None if not recorded. unaccounted: shards of which it is
    not. listing: of the files of the input's folder. fingerprint_version: 1 if version 0.1 wrote the card, or another
    tool the data set, so that the activation is not recorded. None for image shards. dated: whether it was version 0.1.

    tokens, token_width: the total number of token states, and their width; None if none are stored.
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
    fingerprint_version: int | None
    tokens: int | None
    token_width: int | None
    columns: tuple[str, ...]
    similarity: Spread | None
    norms: dict[str, Spread]
    stored_norms: dict[str, Spread]
    captions: Spread | None
    cut: CutCaptions | None
    merged: tuple[str, ...]
    accounts: Accounts | None
    unaccounted: int
    listing: Accounts | None
    options: dict[str, Any]
    versions: dict[str, str]
    dated: bool


def describe(path: str, most_hosts: int = 0, listen: Listener = silent) -> OutputInfo:
    """Describe an output of `encode`, `merge` or `fetch`, finished or not, or another tool's data set.

    Raises InputError or DatasetError.

    most_hosts: for image shards, the number of hosts to list, those with the most failed urls; reads all tables.
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
    cut = sum((entry.cut() for entry in entries), CutCaptions())
    spreads = _of_all_rows(dataset, listen) if dataset is not None else {}
    return OutputInfo(
        path=path,
        format=run.format,
        shards=len(entries),
        planned=len(run.plan),
        rows=total.succeeded,
        rejected=sum(total.failed.values()),
        rejects=total.failed,
        retried=total.retried,
        hosts=hosts_that_failed(path, run, most_hosts) if run.format == IMAGE_SHARDS and most_hosts and entries else (),
        bytes=sum(entry.bytes() for entry in entries),
        encoder=run.encoder.facts() | {"model": run.encoder.model, "pretrained": run.encoder.pretrained}
        if run.encoder is not None
        else None,
        fingerprint=run.encoder.fingerprint() if run.encoder is not None else "",
        fingerprint_version=run.encoder.fingerprint_version if run.encoder is not None else None,
        tokens=sum(entry.tokens or 0 for entry in entries) if run.token_width is not None else None,
        token_width=run.token_width,
        columns=dataset.column_names() if dataset is not None else tuple(run.columns),
        similarity=spreads.get("similarity"),
        norms={modality: spreads[name] for modality, name in NORMS.items() if name in spreads},
        stored_norms=_stored_norms(dataset) if dataset is not None else {},
        captions=_captions(dataset) if dataset is not None else None,
        cut=cut if cut.rows else None,
        merged=tuple(part.path for part in run.merged),
        accounts=manifest.total_accounts(entries),
        unaccounted=sum(entry.accounts is None for entry in entries),
        listing=run.listing,
        options=run.options,
        versions=run.versions,
        dated=run.dated,
    )


def _of_all_rows(dataset: EmbeddingDataset, listen: Listener) -> dict[str, Spread]:
    """Distributions of similarities and norms, by column; columns without values are left out."""
    listen(Progress(planned=len(dataset.shards)))
    columns = ("similarity", *(name for name in measured(dataset.run.columns) if name in NORMS.values()))
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in columns}
    for number, shard in enumerate(dataset.shards):
        table = dataset.metadata(number, columns)
        for name in columns:
            parts[name].append(table[name].drop_null().to_numpy())
        listen(Progress(rows=shard.stop - shard.start, tasks=1))
    found = {name: spread(np.concatenate(values)) for name, values in parts.items()}
    return {name: values for name, values in found.items() if values is not None}


def without_norms(found: OutputInfo) -> str | None:
    """The consequences of missing projection norms in an embedding data set; None if it has them all."""
    sides = [
        side
        for side, stored in found.stored_norms.items()
        if side not in found.norms and of_norm_1(stored.least, stored.most)
    ]
    if not sides:
        return None
    return (
        f"not stored ({' and '.join(sides)}): the rows cannot be used as image_embeds by decoders of diffusers, nor by "
        "priors that standardise raw embeddings"
    )


def _stored_norms(dataset: EmbeddingDataset) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for modality, column in (("image", dataset.image), ("text", dataset.text)):
        if column is not None and len(dataset):
            rows = [dataset.array(number, modality)[chosen].astype(np.float32) for number, chosen in _sample(dataset)]
            lengths = spread(np.linalg.norm(np.concatenate(rows), axis=1))
            if lengths is not None:
                found[modality] = lengths
    return found


def _captions(dataset: EmbeddingDataset) -> Spread | None:
    lengths = [
        len(caption)
        for number, rows in _sample(dataset)
        for caption in dataset.metadata(number, ("caption",)).column(0)[rows].to_pylist()
        if caption is not None
    ]
    return spread(np.array(lengths, np.float64))


def _sample(dataset: EmbeddingDataset) -> Iterator[tuple[int, slice]]:
    """(index of a shard, rows of it), always the same ones."""
    count = len(dataset.shards)
    for number in np.unique(np.linspace(0, max(0, count - 1), min(count, _SHARDS_LOOKED_AT)).astype(int)).tolist():
        shard = dataset.shards[number]
        first = max(0, (shard.stop - shard.start - _ROWS_OF_EACH) // 2)
        yield number, slice(first, first + _ROWS_OF_EACH)


def spread(values: np.ndarray) -> Spread | None:
    """The distribution of the finite numbers, None if there are none."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return None
    p05, p50, p95 = (float(p) for p in np.percentile(values, [5, 50, 95]))
    least, most = float(values.min()), float(values.max())
    # Nearly equal numbers, such as norms, can be too close for ten distinct bin edges in double precision.
    counts = (
        [len(values)] if np.isclose(least, most, rtol=1e-9, atol=0) else np.histogram(values, _BINS, (least, most))[0]
    )
    return Spread(len(values), float(values.mean()), p05, p50, p95, least, most, tuple(int(count) for count in counts))
