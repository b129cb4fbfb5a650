"""Cuts through a data set: which rows meet a condition, and how the values of columns are spread inside and outside."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..curate.filter.columns import column_types, values
from ..curate.filter.expression import parse_condition
from ..errors import InputError, did_you_mean
from ..execute import in_order
from ..load import EmbeddingDataset
from ..load.lru_cache import ByteLRUCache

NUMBER, CATEGORY, OTHER = "number", "category", "other"
_HELD_BYTES = 512 << 20
_CATEGORIES_SHOWN = 30
_CONDITIONS_HELD = 16


@dataclass(frozen=True, slots=True)
class _Categories:
    """The distinct values of a column, most frequent first, and the place among them of each row's: int32 [n].

    -1: the row has none.
    """

    values: tuple[str | bool, ...]
    codes: np.ndarray


class Cuts:
    """The columns of a data set that conditions can use, held in memory once they were asked for, up to a bound."""

    def __init__(self, dataset: EmbeddingDataset) -> None:
        self.dataset = dataset
        self.types = column_types(dataset, with_score=False)
        self._held = ByteLRUCache(_HELD_BYTES)
        self._named: dict[str, tuple[str | bool, ...]] = {}
        self._lock = threading.Lock()
        self._masks: OrderedDict[str, tuple[np.ndarray, int]] = OrderedDict()

    def kind(self, name: str) -> str:
        """Whether a column holds numbers, categories, or something that has neither histogram nor facets."""
        kind = self.types[name]
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return NUMBER
        return CATEGORY if pa.types.is_string(kind) or pa.types.is_boolean(kind) else OTHER

    def kept(self, where: str) -> tuple[np.ndarray, int]:
        """(which rows meet the condition: bool [n], of how many that is unknown). Raises InputError for a bad one."""
        where = where.strip()
        if not where:
            return np.ones(len(self.dataset), bool), 0
        with self._lock:
            if where in self._masks:
                self._masks.move_to_end(where)
                return self._masks[where]
        made = self._computed(where)
        with self._lock:
            self._masks[where] = made
            while len(self._masks) > _CONDITIONS_HELD:
                self._masks.popitem(last=False)
        return made

    def _computed(self, where: str) -> tuple[np.ndarray, int]:
        condition = parse_condition(where, self.types)

        def one(shard: int) -> pa.Array:
            rows = self.dataset.shards[shard].stop - self.dataset.shards[shard].start
            return condition.mask(values(self.dataset, shard, condition.columns, None, "image"), rows)

        found, unknown = [np.empty(0, bool)], 0
        for _, mask in in_order(one, range(len(self.dataset.shards)), None):
            unknown += mask.null_count
            found.append(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))
        return np.concatenate(found), unknown

    def numbers(self, name: str) -> np.ndarray:
        """float64 [n] of a column of numbers, NaN where a row has none. Raises InputError for another column."""
        self._require(name, NUMBER)

        def read() -> np.ndarray:
            parts = [pc.cast(part, pa.float64(), safe=False).to_numpy(zero_copy_only=False) for part in self._all(name)]
            return np.concatenate([np.empty(0), *parts])

        found: np.ndarray = self._held.get(("number", name), read)
        return found

    def order(self, name: str, descending: bool) -> np.ndarray:
        """int64 [n]: the rows in the order of a column of numbers; those without one last, equal ones as they stand."""

        def made() -> np.ndarray:
            numbers = self.numbers(name)
            return np.argsort(-numbers if descending else numbers, kind="stable")

        found: np.ndarray = self._held.get(("order", name, descending), made)
        return found

    def categories(self, name: str) -> _Categories:
        """The categories of a column. Raises InputError for a column that has none."""
        self._require(name, CATEGORY)

        def read() -> np.ndarray:
            encoded = pa.chunked_array(self._all(name), self.types[name]).combine_chunks().dictionary_encode()
            codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
            counts = np.bincount(codes[codes >= 0], minlength=len(encoded.dictionary))
            order = np.argsort(-counts, kind="stable")
            place = np.full(len(order) + 1, -1, np.int32)  # its last is that of -1
            place[order] = np.arange(len(order))
            self._named[name] = tuple(encoded.dictionary.take(pa.array(order[:_CATEGORIES_SHOWN])).to_pylist())
            recoded: np.ndarray = place[codes]
            return recoded

        codes: np.ndarray = self._held.get(("category", name), read)
        return _Categories(self._named[name], codes)

    def _all(self, name: str) -> list[pa.Array]:
        def one(shard: int) -> pa.Array:
            return values(self.dataset, shard, (name,), None, "image")[name]

        return [part for _, part in in_order(one, range(len(self.dataset.shards)), None)]

    def _require(self, name: str, kind: str) -> None:
        if name not in self.types:
            raise InputError(f"{self.dataset.path}: no column {name!r}", did_you_mean(name, self.types))
        if self.kind(name) != kind:
            raise InputError(f"column {name!r} is {self.types[name]}", f"Name a column of kind {kind}")

    def spread(self, name: str, kept: np.ndarray, bins: int) -> dict[str, Any]:
        """How a column is spread among all rows and those kept, to be shown: see docs/serving.md."""
        if name not in self.types:
            raise InputError(f"{self.dataset.path}: no column {name!r}", did_you_mean(name, self.types))
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            NUMBER: lambda: _histogram(self.numbers(name), kept, bins),
            CATEGORY: lambda: _facets(self.categories(name), kept),
        }
        kind = self.kind(name)
        return {"column": name, "kind": kind, **kinds.get(kind, dict)()}


def _histogram(numbers: np.ndarray, kept: np.ndarray, bins: int) -> dict[str, Any]:
    known = np.isfinite(numbers)
    if not known.any():
        return {"least": None, "most": None, "all": [], "kept": [], "missing": len(numbers)}
    least, most = float(numbers[known].min()), float(numbers[known].max())
    span = (least, most if most > least else least + 1)
    everything, _ = np.histogram(numbers[known], bins, span)
    inside, _ = np.histogram(numbers[known & kept], bins, span)
    missing = int(len(numbers) - known.sum())
    return {"least": least, "most": most, "all": everything.tolist(), "kept": inside.tolist(), "missing": missing}


def _facets(found: _Categories, kept: np.ndarray) -> dict[str, Any]:
    has = found.codes >= 0
    distinct = int(found.codes.max(initial=-1)) + 1
    everything = np.bincount(found.codes[has], minlength=distinct)
    inside = np.bincount(found.codes[has & kept], minlength=distinct)
    shown = [
        {"value": value, "all": int(everything[place]), "kept": int(inside[place])}
        for place, value in enumerate(found.values)
    ]
    return {"distinct": distinct, "values": shown, "missing": int((~has).sum())}
