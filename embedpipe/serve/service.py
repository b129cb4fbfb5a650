"""What the server answers: a function for each question, over the data sets that it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response

from ..errors import InputError, did_you_mean
from ..load.images.source import sources_of
from ..redact import redacted
from .messages import Cut, CutRequest, RowsRequest, SearchRequest, SelectionRequest, Side, Term
from .metrics import Metrics
from .served import ServedDataset
from .shown import cards, details
from .thumbnails import SIDES_PX

_NOT_A_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


class NoSuchThing(InputError):
    """What an address names is not there."""


class Service:
    """The data sets by name, and the questions that a client can ask about them. Methods are safe in many threads."""

    def __init__(self, served: Sequence[ServedDataset], metrics: Metrics) -> None:
        self.served: Mapping[str, ServedDataset] = {one.name: one for one in served}
        self.metrics = metrics

    def of(self, name: str) -> ServedDataset:
        """A data set by name. Raises NoSuchThing."""
        if name not in self.served:
            raise NoSuchThing(f"no data set {name!r} here", did_you_mean(name, self.served))
        return self.served[name]

    def datasets(self) -> list[dict[str, Any]]:
        """The data sets, their columns, and what can be asked of them."""
        return [_described(one) for one in self.served.values()]

    def search(self, name: str, asked: SearchRequest) -> dict[str, Any]:
        """Nearest rows: a page of them."""
        one = self.of(name)
        with self.metrics.timed("full_knn_request_time"):
            one.searcher(asked.modality)
            query = self.query(one, asked.terms, asked.modality)
            return self._page(one, query, asked.modality, asked.cut, asked.min_score, asked.offset, asked.limit)

    def query(self, one: ServedDataset, terms: Sequence[Term], side: Side) -> np.ndarray:
        """The embedding of some terms, timed by what they are."""
        kinds = {"image_clip_inference_time" for term in terms if term.image is not None}
        kinds |= {"text_clip_inference_time" for term in terms if term.text is not None}
        if len(kinds) != 1:
            return one.query(terms, side)
        with self.metrics.timed(kinds.pop()):
            return one.query(terms, side)

    def _page(
        self,
        one: ServedDataset,
        query: np.ndarray,
        side: Side,
        cut: Cut,
        min_score: float | None,
        offset: int,
        limit: int,
    ) -> dict[str, Any]:
        with self.metrics.timed("knn_index_time"):
            found = one.ranked(query, side, cut, min_score, offset + limit)
        page = slice(offset, offset + limit)
        with self.metrics.timed("metadata_get_time"):
            shown = cards(one.dataset, found.rows[page], found.scores[page])
        more = offset + limit < len(found.rows) or (not found.whole and bool(shown))
        return {"rows": shown, "offset": offset, "more": more}

    def rows(self, name: str, asked: RowsRequest) -> dict[str, Any]:
        """A page of the rows of a cut."""
        one = self.of(name)
        mask, _ = one.kept(asked.cut)
        if asked.sort is None:
            kept = np.flatnonzero(mask)
            kept = kept[::-1] if asked.descending else kept
        else:
            order = one.cuts.order(asked.sort, asked.descending)
            kept = order[mask[order]]
        page = kept[asked.offset : asked.offset + asked.limit]
        more = asked.offset + asked.limit < len(kept)
        return {"rows": cards(one.dataset, page), "offset": asked.offset, "more": more, "total": len(kept)}

    def row(self, name: str, row: int) -> dict[str, Any]:
        """One row, whole."""
        one = self.of(name)
        return details(one.dataset, _there(one, row), sources_of(one.dataset))

    def neighbours(self, name: str, row: int, side: Side, limit: int) -> dict[str, Any]:
        """The rows nearest to one, without itself."""
        one = self.of(name)
        one.searcher(side)
        query = one.query([Term(row=_there(one, row))], side)
        page = self._page(one, query, side, Cut(), None, 0, limit + 1)
        return {"rows": [card for card in page["rows"] if card["row"] != row][:limit]}

    def picture(self, name: str, row: int, side_px: int) -> Response:
        """A row's picture as a JPEG."""
        one = self.of(name)
        if side_px not in SIDES_PX:
            raise InputError(f"no pictures of {side_px} pixels", f"There are {', '.join(map(str, SIDES_PX))}")
        data = one.pictures.jpeg(_there(one, row), side_px)
        if data is None:
            raise NoSuchThing(f"no picture of row {row}")
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    def cut(self, name: str, asked: CutRequest) -> dict[str, Any]:
        """How many rows a cut keeps, and how columns are spread in it."""
        one = self.of(name)
        mask, unknown = one.kept(asked.cut)
        kept = int(mask.sum())
        spreads = [one.cuts.spread(column, mask, asked.bins) for column in asked.columns]
        return {"rows": len(mask), "kept": kept, "dropped": len(mask) - kept, "unknown": unknown, "columns": spreads}

    def selections(self, name: str) -> dict[str, Any]:
        """The saved selections of a data set."""
        one = self.of(name)
        return {"folder": one.selections.folder, "selections": [_saved(it) for it in one.selections.listed()]}

    def select(self, name: str, asked: SelectionRequest) -> dict[str, Any]:
        """Save a selection."""
        one = self.of(name)
        if asked.cut is not None:
            rows, how = np.flatnonzero(one.kept(asked.cut)[0]), asked.cut.model_dump()
        else:
            rows, how = np.unique(np.array(asked.rows, np.int64)), {}
            if len(rows):
                for end in (rows[0], rows[-1]):
                    one.require_row(int(end))
        return _saved(one.selections.save(asked.name, rows, how, asked.replace))

    def selected(self, name: str, selection: str) -> dict[str, Any]:
        """The row numbers of a selection."""
        rows = self.of(name).selections.rows(selection)
        return {"name": selection, "rows": rows.tolist()}


def _there(one: ServedDataset, row: int) -> int:
    try:
        return one.require_row(row)
    except InputError as problem:
        raise NoSuchThing(problem.what, problem.remedy) from problem


def _saved(found: Any) -> dict[str, Any]:
    return {"name": found.name, "path": found.path, "rows": found.rows, "made_by": found.made_by}


def _described(one: ServedDataset) -> dict[str, Any]:
    card = one.dataset.card
    sides = [
        {"name": side, "searchable": True, "index": searcher.card.kind if searcher.card is not None else None}
        for side, searcher in one.searchers.items()
    ]
    sides += [{"name": side, "searchable": False, "why": why} for side, why in one.unsearchable.items()]
    return {
        "name": one.name,
        "path": redacted(one.dataset.path),
        "rows": len(one.dataset),
        "dim": card.dim,
        "model": f"{card.model} {card.pretrained}".strip(),
        "modalities": sides,
        "encoder": {"usable": one.encoder.usable, "loaded": one.encoder.loaded},
        "pictures": one.pictures.there,
        "columns": one.columns(),
    }


def names_for(paths: Sequence[str]) -> list[str]:
    """A name for each data set, fit for an address: the last part of its path, numbered where several share it."""
    found: list[str] = []
    for path in paths:
        stem = _NOT_A_SLUG.sub("-", path.rstrip("/").rpartition("/")[2]).strip("-.") or "data"
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}-{number}", number + 1
        found.append(name)
    return found
