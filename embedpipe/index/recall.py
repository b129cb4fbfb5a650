"""Recall of an index, and the nprobe or efSearch that reaches a target recall.

Recall@10: of the ten nearest rows by exact search, the share that the index finds. Queries are rows of the data set
itself: from the modality that is searched, where a row must not find itself, and from the other one, because text
queries come from there and lie elsewhere in the space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..load import EmbeddingDataset
from ..load.row_blocks import release_pages, take_rows
from ..progress import Listener, silent
from .exact import NearestRows, exact_nearest
from .ids import NONE, ids_of_rows
from .index_file import OpenIndex
from .rerank import exact_scores

QUERIES = 256  # per modality: enough to know recall to half a percent or so
RESULTS = 10
_CANDIDATES = (10, 20, 40, 100, 200, 400)
_LOOK_UP_COST = 50  # reading a stored row costs about as much as scanning this many codes
_ROUNDING = 1e-6  # of a cosine: copies of a row count equally
_CONFIDENCE = 1.645  # standard errors: one chance in twenty that the true mean is below
_SEED = 1


@dataclass(frozen=True, slots=True)
class Queries:
    """Test queries: their modality, vectors, own ids (excluded from results; -1: none), and true neighbours."""

    side: str
    vectors: np.ndarray
    own: np.ndarray
    truth: NearestRows


@dataclass(frozen=True, slots=True)
class Setting:
    """Search settings of an index, and the resulting recall@10 by modality of the queries."""

    effort: int | None
    candidates: int
    recall: dict[str, float]


def draw(dataset: EmbeddingDataset, modality: str) -> tuple[Queries, ...]:
    """Queries of each modality in the data set, without their true neighbours; always the same ones."""
    rows = np.random.default_rng(_SEED).choice(len(dataset), min(QUERIES, len(dataset)), replace=False)
    rows.sort()
    drawn = []
    for side, column in (("image", dataset.image), ("text", dataset.text)):
        if column is not None:
            own = ids_of_rows(dataset, rows) if side == modality else np.full(len(rows), NONE)
            drawn.append(Queries(side, take_rows(dataset, side, rows), own, NearestRows.none(len(rows))))
    return tuple(drawn)


def with_truth(
    queries: Sequence[Queries],
    dataset: EmbeddingDataset,
    modality: str,
    shards: Iterable[int] | None = None,
    listen: Listener = silent,
) -> tuple[Queries, ...]:
    """The queries with the true neighbours among these shards (None: all), merged with those already known."""
    together = np.concatenate([some.vectors for some in queries])
    found = exact_nearest(dataset, modality, together, RESULTS + 1, shards, listen)
    out, stop = [], 0
    for some in queries:
        start, stop = stop, stop + len(some.vectors)
        mine = _without_own(NearestRows(found.scores[start:stop], found.ids[start:stop]), some.own)
        out.append(replace(some, truth=some.truth.beside(mine).best(RESULTS)))
    return tuple(out)


def _without_own(found: NearestRows, own: np.ndarray) -> NearestRows:
    """The same without each query's own row, with one column less."""
    mine = (found.ids == own[:, None]) & (found.ids != NONE)
    order = np.argsort(mine, axis=1, kind="stable")[:, : max(1, found.ids.shape[1] - 1)]
    ids = np.where(mine, NONE, found.ids)
    return NearestRows(np.take_along_axis(found.scores, order, 1), np.take_along_axis(ids, order, 1))


def tune(
    index: OpenIndex, dataset: EmbeddingDataset, modality: str, queries: Sequence[Queries], target: float, look_up: bool
) -> Setting:
    """The cheapest setting whose recall is at least `target` for every modality, at 95% confidence.

    If none reaches it, the one with the best recall. look_up: candidates are re-ranked.
    """
    tried: list[tuple[float, Setting, bool]] = []
    for effort in index.efforts():
        looked_at = effort * index.rows / int(index.ivf.nlist) if index.ivf is not None and effort else effort or 0
        if any(enough and cost <= looked_at for cost, _, enough in tried):
            break
        shares = {some.side: _shares(index, dataset, modality, some, effort, look_up) for some in queries}
        for place, candidates in enumerate(_CANDIDATES if look_up else (RESULTS,)):
            found = {side: share[place] for side, share in shares.items()}
            enough = all(_lower_bound(share) >= target for share in found.values())
            setting = Setting(
                effort, candidates if look_up else 0, {side: float(share.mean()) for side, share in found.items()}
            )
            tried.append((looked_at + _LOOK_UP_COST * candidates, setting, enough))
    reaching = [(cost, setting) for cost, setting, enough in tried if enough]
    if reaching:
        return min(reaching, key=lambda pair: pair[0])[1]
    return max((setting for _, setting, _ in tried), key=lambda setting: min(setting.recall.values()))


def _lower_bound(shares: np.ndarray) -> float:
    return float(shares.mean() - _CONFIDENCE * shares.std() / np.sqrt(len(shares)))


def _shares(
    index: OpenIndex, dataset: EmbeddingDataset, modality: str, queries: Queries, effort: int | None, look_up: bool
) -> list[np.ndarray]:
    """For each number of candidates, the recall of each query: float64 [q]."""
    counts = _CANDIDATES if look_up else (RESULTS,)
    found = _without_own(index.candidates(queries.vectors, counts[-1] + 1, effort), queries.own)
    real = queries.truth.ids != NONE
    good = (found.ids[:, :, None] == queries.truth.ids[:, None, :]).any(axis=2) & (found.ids != NONE)
    others = NearestRows(found.scores, np.where(good, NONE, found.ids))  # copies of the true ones, or misses
    good |= _as_near(dataset, modality, queries, others)
    if look_up:
        for shard in range(len(dataset.shards)):
            release_pages(dataset.array(shard, modality))
    wanted = np.maximum(1, real.sum(axis=1))
    return [np.where(real.any(axis=1), np.minimum(good[:, :n].sum(axis=1) / wanted, 1.0), 1.0) for n in counts]


def _as_near(dataset: EmbeddingDataset, modality: str, queries: Queries, found: NearestRows) -> np.ndarray:
    """bool [q, candidates]: at least as near as the last of the true neighbours, in the order of `found`."""
    scores = exact_scores(dataset, modality, queries.vectors, found.ids)
    last = np.where(queries.truth.ids != NONE, queries.truth.scores, np.inf).min(axis=1)
    near: np.ndarray = (scores >= last[:, None] - _ROUNDING) & (found.ids != NONE)
    return near


def packed(queries: Sequence[Queries]) -> dict[str, Any]:
    """The queries as arrays, for a file."""
    arrays: dict[str, Any] = {}
    for some in queries:
        named = {"vectors": some.vectors, "own": some.own, "scores": some.truth.scores, "ids": some.truth.ids}
        arrays |= {f"{some.side}_{name}": array for name, array in named.items()}
    return arrays


def unpacked(arrays: Any) -> tuple[Queries, ...]:
    """The queries from such a file. Raises KeyError if it is invalid."""
    sides = [side for side in ("image", "text") if f"{side}_vectors" in arrays]
    return tuple(
        Queries(
            side,
            arrays[f"{side}_vectors"],
            arrays[f"{side}_own"],
            NearestRows(arrays[f"{side}_scores"], arrays[f"{side}_ids"]),
        )
        for side in sides
    )
