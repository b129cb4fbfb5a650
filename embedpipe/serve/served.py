"""One data set as it is served: its searchers, columns, pictures and selections, for many threads at once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DatasetError, EmbedpipeError, InputError
from ..index.ids import NONE
from ..index.searcher import Searcher
from ..load import EmbeddingDataset
from .cuts import Cuts
from .messages import DEEPEST, Cut, Term
from .query_encoder import SharedEncoder
from .selections import Selections
from .thumbnails import Thumbnails

FEW_ROWS = 50_000  # of a cut: compared one by one
_FIRST_DEPTH = 300  # results of a search that are looked for at first
_ANSWERS_HELD = 64
_CANCELLED = 1e-6  # the length below which a sum of unit embeddings says nothing


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows of an answer, best first, and their cosines. whole: there are no more."""

    rows: np.ndarray
    scores: np.ndarray
    whole: bool


class ServedDataset:
    """A data set under a name.

    searchers: by side; `unsearchable` says of the other sides why they cannot be searched.
    """

    def __init__(
        self,
        name: str,
        dataset: EmbeddingDataset,
        encoder: SharedEncoder,
        pictures: Thumbnails,
        selections: Selections,
        exact: bool = False,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.encoder = encoder
        self.pictures = pictures
        self.selections = selections
        self.cuts = Cuts(dataset)
        self.searchers: dict[str, Searcher] = {}
        self.unsearchable: dict[str, str] = {}
        for side in ("image", "text"):
            try:
                self.searchers[side] = Searcher(dataset, side, exact)
            except EmbedpipeError as problem:
                self.unsearchable[side] = str(problem)
        self._searching = threading.Lock()
        self._remembering = threading.Lock()
        self._answers: OrderedDict[tuple[object, ...], Ranked] = OrderedDict()

    def searcher(self, side: str) -> Searcher:
        """The searcher of a side. Raises InputError where there is none, saying why."""
        if side not in self.searchers:
            raise InputError(f"no search by {side} here: {self.unsearchable[side]}")
        return self.searchers[side]

    def kept(self, cut: Cut) -> tuple[np.ndarray, int]:
        """(the rows of a cut: bool [n], of how many its condition is unknown)"""
        mask, unknown = self.cuts.kept(cut.where)
        if cut.selection is not None:
            chosen = np.zeros(len(self.dataset), bool)
            chosen[self.selections.rows(cut.selection)] = True
            mask = mask & chosen
        return mask, unknown

    def row_of(self, key: str, shard: str | None) -> int:
        """The row of a key. Raises InputError if there is none, or if several source shards have one."""
        try:
            return int(self.dataset.find([key], shard)[0])
        except DatasetError as problem:
            raise InputError(problem.what, problem.remedy) from problem

    def require_row(self, row: int) -> int:
        """`row`, if there is one. Raises InputError."""
        if not 0 <= row < len(self.dataset):
            raise InputError(f"no row {row} of {len(self.dataset):,}", "Rows count from 0")
        return row

    def query(self, terms: Sequence[Term], side: str) -> np.ndarray:
        """float32 [dim], of norm 1: the weighted sum of the terms' unit embeddings."""
        total = np.zeros(self.dataset.card.dim, np.float64)
        for term in terms:
            total += term.weight * _unit(self._embedded(term, side), self.dataset.card.dim)
        length = float(np.linalg.norm(total))
        if length < _CANCELLED:
            raise InputError("the parts of the query cancel each other out", "Give them other weights")
        unit: np.ndarray = (total / length).astype(np.float32)
        return unit

    def _embedded(self, term: Term, side: str) -> np.ndarray:
        if term.text is not None:
            return self.encoder.text(term.text)
        if term.image is not None:
            return self.encoder.image(picture_bytes(term.image))
        if term.embedding is not None:
            return np.array(term.embedding, np.float64)
        row = self.row_of(term.key, term.shard) if term.key is not None else self.require_row(int(term.row or 0))
        column = getattr(self.dataset, side) or self.dataset.require("image" if side == "text" else "text")
        found: np.ndarray = column[row]
        return found

    def ranked(self, query: np.ndarray, side: str, cut: Cut, min_score: float | None, need: int) -> Ranked:
        """At least `need` rows of the cut, if it has as many, best first. query: float32 [dim], of norm 1."""
        mask = self.kept(cut)[0] if cut != Cut() else None
        drawn = hashlib.sha256(mask.tobytes()).hexdigest() if mask is not None else ""
        asked = (hashlib.sha256(query.tobytes()).hexdigest(), side, drawn)
        with self._remembering:
            answer = self._answers.get(asked)
        if answer is None or (len(answer.rows) < need and not answer.whole):
            depth = _FIRST_DEPTH
            while depth < need:
                depth *= 4
            answer = self._found(query, self.searcher(side), mask, min(depth, max(need, DEEPEST)))
            with self._remembering:
                self._answers[asked] = answer
                while len(self._answers) > _ANSWERS_HELD:
                    self._answers.popitem(last=False)
        if min_score is None:
            return answer
        enough = int(np.searchsorted(-answer.scores, -np.float32(min_score), side="right"))
        return Ranked(answer.rows[:enough], answer.scores[:enough], answer.whole or enough < len(answer.rows))

    def _found(self, query: np.ndarray, searcher: Searcher, mask: np.ndarray | None, depth: int) -> Ranked:
        if mask is None:
            rows, scores = self._nearest(query, searcher, depth)
            return Ranked(rows, scores, len(rows) >= len(self.dataset))
        count = int(mask.sum())
        if count <= FEW_ROWS:
            return self._compared(query, searcher, np.flatnonzero(mask), depth)
        wider = math.ceil(depth * len(mask) / count) + _FIRST_DEPTH
        while True:
            wider = min(wider, len(mask))
            rows, scores = self._nearest(query, searcher, wider)
            inside = mask[rows]
            if inside.sum() >= min(depth, count) or wider == len(mask) or wider >= 16 * DEEPEST:
                rows, scores = rows[inside][:depth], scores[inside][:depth]
                return Ranked(rows, scores, len(rows) >= count)
            wider *= 4

    def _nearest(self, query: np.ndarray, searcher: Searcher, k: int) -> tuple[np.ndarray, np.ndarray]:
        with self._searching:  # an index keeps the effort of a search in itself
            found = searcher.nearest(query[None], k)
        there = found.ids[0] != NONE
        return found.ids[0][there], found.scores[0][there]

    def _compared(self, query: np.ndarray, searcher: Searcher, rows: np.ndarray, depth: int) -> Ranked:
        stored = self.dataset.require(searcher.modality)[rows].astype(np.float32)
        scores = stored @ query
        best = np.lexsort((rows, -scores))[:depth]
        return Ranked(rows[best], scores[best], len(best) == len(rows))

    def columns(self) -> list[dict[str, str]]:
        """The columns that conditions can use: their names, types and kinds."""
        return [
            {"name": name, "type": str(kind), "kind": self.cuts.kind(name)} for name, kind in self.cuts.types.items()
        ]


def picture_bytes(text: str) -> bytes:
    """The file in base64, with or without the head of a data url. Raises InputError if it is none."""
    head, comma, rest = text.partition(",")
    try:
        return base64.b64decode(rest if comma and head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise InputError(f"the picture is not base64: {problem}", "Send the bytes of its file in base64") from problem


def _unit(row: np.ndarray, dim: int) -> Any:
    row = np.asarray(row, np.float64)
    if row.shape != (dim,):
        raise InputError(f"an embedding of {len(row)} values; those of the data set have {dim}")
    length = np.linalg.norm(row)
    if not np.isfinite(length) or length == 0:
        raise InputError("an embedding is zero, or holds a NaN or an infinite value", "Leave it out")
    return row / length
