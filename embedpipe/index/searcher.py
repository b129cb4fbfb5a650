"""Search: the rows nearest to an embedding, through the index if there is one, else by brute force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..clip_model.encoder_card import BEFORE_ACTIVATION
from ..errors import DatasetError, InputError, OptionError
from ..load import EmbeddingDataset
from ..progress import Listener, silent
from .card import IndexCard, build_command, indexed_shards
from .exact import NearestRows, exact_nearest
from .ids import NONE, rows_of_ids
from .index_file import OpenIndex, open_card
from .recall import RESULTS
from .rerank import rerank

EXACT_ROWS = 1_000_000  # up to here a data set without an index is searched by brute force
QUERIES_AT_ONCE = 1024
_RESULTS_AT_ONCE = 100_000


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


class Searcher:
    """Searches one modality of a data set. `card` is that of its index, None for brute-force search.

    exact: use no index. Raises DatasetError if the index is damaged or of other data, or if there is none and the data
    set is too large for brute force.
    """

    def __init__(self, dataset: EmbeddingDataset, modality: str = "image", exact: bool = False) -> None:
        dataset.require_rows()
        other = "text" if modality == "image" else "image"
        if getattr(dataset, modality) is None and getattr(dataset, other) is not None:
            raise DatasetError(
                f"{dataset.path}: has no {modality} embeddings",
                f"Search its {other}s: `modality={other!r}`; or encode it again with its {modality}s",
            )
        dataset.require(modality)
        dataset.require_normalised(modality)
        self.dataset = dataset
        self.modality = modality
        self.card: IndexCard | None = None
        self._index: OpenIndex | None = None
        found = None if exact else open_card(dataset.path, modality)
        if found is not None:
            self.card, self._index = found
            _require_same_data(dataset, self.card)
        elif not exact and len(dataset) > EXACT_ROWS:
            raise DatasetError(
                f"{dataset.path}: no {modality} index, and {len(dataset):,} rows are many to compare with",
                f"{build_command(dataset.path, modality)}, or give `exact=True`",
            )

    def nearest(self, queries: np.ndarray, k: int, listen: Listener = silent) -> NearestRows:
        """The best `k` rows for each of float32 [q, dim], with row numbers of the data set as ids."""
        _require_k(k)
        k = min(k, len(self.dataset))
        if self._index is None or self.card is None:
            found = exact_nearest(self.dataset, self.modality, queries, k, listen=listen)
        else:
            found = _through(self._index, self.card, self.dataset, queries, k)
        return NearestRows(found.scores, rows_of_ids(self.dataset, found.ids))

    def hits(
        self,
        queries: np.ndarray,
        k: int = 10,
        min_score: float | None = None,
        columns: tuple[str, ...] | None = None,
        listen: Listener = silent,
    ) -> Iterator[list[Hit]]:
        """The hits for each of [q, dim], best first. columns: of the metadata, None for all.

        Queries are normalised. Raises InputError for zero or non-finite ones.
        """
        _require_k(k)
        queries = _unit(queries, self.dataset.card.dim)
        at_once = max(1, min(QUERIES_AT_ONCE, _RESULTS_AT_ONCE // k))
        for start in range(0, len(queries), at_once):
            found = self.nearest(queries[start : start + at_once], k, listen)
            keep = (found.ids != NONE) & (found.scores >= (-np.inf if min_score is None else min_score))
            yield from _hits(self.dataset, found, keep, columns)


def _require_k(k: int) -> None:
    if k < 1:
        raise OptionError(f"`k={k}`: must be at least 1")


def _through(index: OpenIndex, card: IndexCard, dataset: EmbeddingDataset, queries: np.ndarray, k: int) -> NearestRows:
    effort = card.nprobe if card.nprobe is not None else card.ef_search
    if not card.candidates:
        return index.candidates(queries, k, effort, least=k).best(k)
    count = max(card.candidates, -(-k * card.candidates // RESULTS))
    found = index.candidates(queries, count, effort, least=k)
    return rerank(dataset, card.modality, queries, found).best(k)


def _require_same_data(dataset: EmbeddingDataset, card: IndexCard) -> None:
    if card.fingerprint != dataset.card.fingerprint():
        dated = card.fingerprint == dataset.card.as_version_0_1().fingerprint()
        of = f"embeddings {BEFORE_ACTIVATION}" if dated else "another model's embeddings"
        raise DatasetError(
            f"{dataset.path}: its {card.modality} index is of {of}",
            build_command(dataset.path, card.modality),
        )
    if card.shards != indexed_shards(dataset):
        have, want = set(card.shards), set(indexed_shards(dataset))
        raise DatasetError(
            f"{dataset.path}: its {card.modality} index is of other data: the data set has changed since "
            f"({len(want - have)} shards are not in the index, {len(have - want)} in it are not in the data)",
            f"{build_command(dataset.path, card.modality)}: what is new is added, or give `exact=True`",
        )


def _unit(queries: np.ndarray, dim: int) -> np.ndarray:
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise InputError(f"a query of shape {queries.shape[1:]}; the data set's embeddings have {dim} values")
    length = np.linalg.norm(queries, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if len(bad):
        raise InputError(f"query {bad[0]}: its embedding is zero, or holds a NaN or an infinite value")
    unit: np.ndarray = queries / length
    return unit


def _hits(
    dataset: EmbeddingDataset, found: NearestRows, keep: np.ndarray, columns: tuple[str, ...] | None
) -> Iterator[list[Hit]]:
    metadata = _metadata(dataset, np.unique(found.ids[keep]), columns)
    for scores, rows, mine in zip(found.scores, found.ids, keep, strict=True):
        pairs = zip(scores[mine].tolist(), rows[mine].tolist(), strict=True)
        yield [_hit(rank, score, row, metadata[row]) for rank, (score, row) in enumerate(pairs, start=1)]


def _hit(rank: int, score: float, row: int, metadata: dict[str, Any]) -> Hit:
    caption = metadata["caption"]
    return Hit(
        rank=rank,
        score=score,
        row=row,
        key=str(metadata["key"]),
        caption=caption if isinstance(caption, str) else None,
        src_shard=str(metadata["src_shard"]),
        metadata=metadata,
    )


def _metadata(
    dataset: EmbeddingDataset, rows: np.ndarray, columns: tuple[str, ...] | None
) -> dict[int, dict[str, Any]]:
    """Metadata of some rows (ascending), one shard's table in memory at a time."""
    found: dict[int, dict[str, Any]] = {}
    owner = np.searchsorted(dataset.stops, rows, side="right")
    for shard in np.unique(owner).tolist():
        mine = rows[owner == shard]
        table = dataset.metadata(shard, columns).take(pa.array(mine - dataset.shards[shard].start))
        found.update(zip(mine.tolist(), table.to_pylist(), strict=True))
    return found


def row_of_key(dataset: EmbeddingDataset, key: str, shard: str | None = None) -> int:
    """The row with that key, in the source shard `shard` if given.

    Raises InputError if there is none, or if several source shards have one and `shard` is not given.
    """
    found = list(_rows_of_key(dataset, key, shard))
    if not found:
        where = f" in {shard}" if shard is not None else ""
        raise InputError(f"{dataset.path}: no row with the key {key!r}{where}", "Keys are in the column 'key'")
    if len(found) > 1:
        names: Sequence[str] = [name for _, name in found[:5]]
        raise InputError(
            f"{dataset.path}: {len(found)} rows have the key {key!r}, in {', '.join(names)}{' …' * (len(found) > 5)}",
            "Choose one with `shard`",
        )
    return found[0][0]


def _rows_of_key(dataset: EmbeddingDataset, key: str, shard: str | None) -> Iterator[tuple[int, str]]:
    for place, rows in enumerate(dataset.shards):
        if shard is not None and rows.manifest.source.name != shard:
            continue
        keys = dataset.metadata(place, ("key",)).column("key").to_numpy(zero_copy_only=False)
        for at in np.flatnonzero(keys == key).tolist():
            yield rows.start + at, rows.manifest.source.name
