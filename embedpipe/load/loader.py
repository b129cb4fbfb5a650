"""Shuffled batches for training: for rank r of w, starting at any position."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import DatasetError, InputError, RunMismatch
from ..types import EmbeddingBatch
from .dataset import EmbeddingDataset
from .float16 import all_finite, convert_into
from .prefetch import prefetch
from .row_reader import RowReading, not_finite
from .sequential import require_dtype
from .shuffle import ShuffledOrder, Window

WINDOW_ROWS = 65_536
# Up to this size rows are loaded into memory once; larger data is read again in every epoch.
_HELD_IN_MEMORY_BYTES = 1 << 30
_BATCHES_AHEAD = 2
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class _Loaded:
    """This rank's rows of a window.

    order: positions in `arrays` of the stream's rows, in sequence. rows: their numbers in the data set. arrays: the
    rows of the window in file order, or all that are held in memory. checked: all of `arrays` is finite.
    """

    order: np.ndarray
    rows: np.ndarray
    arrays: dict[str, np.ndarray]
    checked: bool


class EmbeddingLoader:
    """Shuffled batches of some rows of a data set, in an order that is a function of (seed, epoch) alone.

    `loader.batches(step)` → the batches from that step on, endlessly. `for batch in loader` continues from the loader's
    position, which `state()` returns as three integers (seed, epoch, row) and `load_state()` restores, in O(1) and at
    any world size: the stream of global batches is the same for every `world`, and rank r gets rows r·b/w to (r+1)·b/w
    of each. Within an epoch no row is repeated or dropped; batches may span two epochs.

    rows: the numbers of the rows to draw from, None for all. batch_size: of the global batch. text_tokens: also return
    the states of the captions' tokens, padded to the longest of each batch. dtype: float32 or float16. reuse: each
    batch reuses the memory of the previous one. window_rows: the size of the shuffle window; it affects the order. Two
    windows are in memory, the second being read by a thread while the first is used.

    Raises DatasetError for a missing modality, and, naming file and row, for a row that is not finite.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        rows: np.ndarray | None = None,
        batch_size: int = 1024,
        seed: int = 0,
        text_tokens: bool = False,
        *,
        rank: int = 0,
        world: int = 1,
        dtype: str = "float32",
        reuse: bool = False,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        require_dtype(dtype)
        if batch_size < world or not 0 <= rank < world:
            raise InputError(
                f"rank {rank} of {world} and a global batch of {batch_size} rows",
                "The rank must be below the world size, and the batch at least as large",
            )
        self._dataset = dataset
        self._rows = _ascending(rows, len(dataset))
        edges = np.append(0, dataset.stops)
        bounds = edges if self._rows is None else np.searchsorted(self._rows, edges)
        if not len(self):
            raise InputError(f"{dataset.path}: no rows to draw from", "Give rows, or look at what the data set holds")
        self._order = ShuffledOrder(bounds, seed, window_rows)
        self._batch_size = batch_size
        self._seed = seed
        self._share = rank * batch_size // world, (rank + 1) * batch_size // world
        # From a window this rank gets its share of every batch, and of one more that starts in it.
        batches = self._order.most_in_window // batch_size + 2
        self._most = min(self._order.most_in_window, batches * (self._share[1] - self._share[0]))
        self._dtype = np.dtype(dtype)
        self._reuse = reuse
        self._sides = [side for side in ("image", "text") if getattr(dataset, side) is not None]
        self._tokens = dataset.require_text_tokens() if text_tokens else None
        self._held = self._read_all() if self._bytes() <= _HELD_IN_MEMORY_BYTES else None
        self._position = 0

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._dataset) if self._rows is None else len(self._rows)

    def batches(self, step: int = 0) -> Iterator[EmbeddingBatch]:
        """This rank's share of the global batches `step`, `step + 1`, …: image and text [share, dim]."""
        return self._from(step * self._batch_size)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        """Batches from the loader's position on, which advances with them."""
        for batch in self._from(self._position):
            self._position += self._batch_size
            yield batch

    def state(self) -> dict[str, int]:
        """The position after the last batch from `for batch in loader`: seed, epoch, and row of that epoch."""
        epoch, row = divmod(self._position, len(self))
        return {"seed": self._seed, "epoch": epoch, "row": row}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Restore the position of another loader over the same rows. Raises RunMismatch for another seed."""
        if state["seed"] != self._seed:
            raise RunMismatch(
                f"a position of seed {state['seed']}, but this loader has seed {self._seed}", "Give the same seed"
            )
        if not 0 <= state["row"] < len(self):
            raise RunMismatch(
                f"a position at row {state['row']} of an epoch of {len(self)} rows", "Give the same rows as before"
            )
        self._position = state["epoch"] * len(self) + state["row"]

    def _from(self, position: int) -> Iterator[EmbeddingBatch]:
        batches = self._batches(position)
        return prefetch(batches, _BATCHES_AHEAD) if self._tokens is not None and not self._reuse else batches

    def _batches(self, position: int) -> Generator[EmbeddingBatch, None, None]:
        """The stream, cut into batches: some start in one window and end in another."""
        size, filled = self._share[1] - self._share[0], 0
        batch, rows = self._room(size), np.empty(size, np.int64)
        for window in prefetch(self._windows(position), 1):
            done = 0
            while done < len(window.order):
                count = min(size - filled, len(window.order) - done)
                rows[filled : filled + count] = window.rows[done : done + count]
                for side, out in batch.items():
                    self._take(window, slice(done, done + count), side, out[filled : filled + count])
                done, filled = done + count, filled + count
                if filled == size:
                    yield self._batch(batch, rows)
                    batch, filled = batch if self._reuse else self._room(size), 0

    def _room(self, size: int) -> dict[str, np.ndarray]:
        return {side: np.empty((size, self._dataset.card.dim), self._dtype) for side in self._sides}

    def _take(self, window: _Loaded, some: slice, side: str, out: np.ndarray) -> None:
        """Some of a window's rows, in stream order: a few at a time, so that they stay in the processor's cache."""
        array, order, rows = window.arrays[side], window.order[some], window.rows[some]
        same = array.dtype == out.dtype
        for first in range(0, len(order), _ROWS_AT_ONCE):
            few = slice(first, first + _ROWS_AT_ONCE)
            found = np.take(array, order[few], axis=0, out=out[few] if same else None, mode="clip")
            if not window.checked and not all_finite(found):
                raise self._not_finite(side, int(rows[few][~np.isfinite(found).all(axis=1)][0]))
            if not same:
                convert_into(found, out[few])

    def _not_finite(self, side: str, row: int) -> DatasetError:
        shard = self._dataset.shard_of(row)
        rows = self._dataset.open_rows(shard, side)
        rows.close()
        return not_finite(rows.location, row - self._dataset.shards[shard].start, self._dataset.path, row)

    def _windows(self, position: int) -> Generator[_Loaded, None, None]:
        """Windows with this rank's rows, double-buffered: one buffer is used while the other is filled."""
        rooms: list[dict[str, np.ndarray]] = [{}, {}]
        turn = 0
        with RowReading(self._dataset, finite=False) as reading:
            for window in self._order.windows(position):
                mine = self._mine(window, position)
                rows, positions = self._numbers(window.places[mine]), window.positions[mine]
                if len(rows):
                    order = _order(positions)
                    if self._held is not None:
                        yield _Loaded(window.places[mine][order], rows[order], self._held, checked=True)
                        continue
                    yield _Loaded(order, rows[order], self._load(reading, rows, rooms[turn]), checked=False)
                    turn = 1 - turn

    def _mine(self, window: Window, position: int) -> np.ndarray | slice:
        """The rows of a window that belong to this rank's share of their global batch."""
        first, last = self._share
        inside = (window.positions - position) % self._batch_size
        return np.flatnonzero((inside >= first) & (inside < last)) if last - first < self._batch_size else slice(None)

    def _numbers(self, places: np.ndarray) -> np.ndarray:
        """Convert positions among the drawn rows to row numbers of the data set."""
        return places if self._rows is None else self._rows[places]

    def _load(self, reading: RowReading, rows: np.ndarray, room: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Load rows of the data set into reused memory."""
        found = {}
        for side in self._sides:
            if side not in room:  # once, for the largest window: allocating costs more than reading
                room[side] = np.empty((self._most, self._dataset.card.dim), self._dataset.card.dtype)
            found[side] = room[side][: len(rows)]
            reading.pick(rows, side, found[side])
        return found

    def _batch(self, arrays: dict[str, np.ndarray], rows: np.ndarray) -> EmbeddingBatch:
        states, mask = self._tokens.batch(rows) if self._tokens is not None else (None, None)
        return EmbeddingBatch(
            image=arrays.get("image"),
            text=arrays.get("text"),
            text_tokens=states.astype(self._dtype) if states is not None else None,
            text_mask=mask,
            rows=rows.copy(),
        )

    def _bytes(self) -> int:
        card = self._dataset.card
        return len(self) * card.dim * len(self._sides) * np.dtype(card.dtype).itemsize

    def _read_all(self) -> dict[str, np.ndarray]:
        """All drawn rows, in the stored dtype."""
        card, found = self._dataset.card, {}
        with RowReading(self._dataset) as reading:
            for side in self._sides:
                found[side] = np.empty((len(self), card.dim), card.dtype)
                if self._rows is None:
                    reading.in_order(0, side, found[side])
                else:
                    reading.pick(self._rows, side, found[side])
        return found


def _ascending(rows: np.ndarray | None, total: int) -> np.ndarray | None:
    if rows is None:
        return None
    ascending = np.sort(np.asarray(rows, np.int64))
    if ascending.size and (ascending[0] < 0 or ascending[-1] >= total):
        raise IndexError(f"rows {ascending[0]}..{ascending[-1]} of {total}")
    if (np.diff(ascending) == 0).any():
        raise InputError("a row to draw from is given twice", "Give each row once")
    return ascending


def _order(positions: np.ndarray) -> np.ndarray:
    """argsort for distinct, dense integers, without sorting."""
    first = int(positions.min())
    place = np.full(int(positions.max()) - first + 1, -1, np.int64)
    place[positions - first] = np.arange(len(positions))
    return place[place >= 0]
