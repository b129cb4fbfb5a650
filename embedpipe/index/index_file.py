"""An open index file: memory-mapped, checked against its card, queried for candidates."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from .. import files
from ..errors import DatasetError, InputError
from ..files import Written
from ..mirror import local_file
from .card import IndexCard, build_command, ends_digest, index_path, read_card
from .exact import NearestRows
from .ids import NONE
from .library import faiss

_TABLE_BYTES = 2 << 30  # faiss's own bound for what it computes of a product quantizer as it reads one
_READING = threading.Lock()
_WIDTHS = (16, 32, 64, 128, 256, 512, 1024)  # of a graph's search


class OpenIndex:
    """A faiss index whose ids are those of `ids.py`.

    `effort` is the search parameter: nprobe for inverted lists, ef_search for a graph, None for others.
    """

    def __init__(self, index: faiss.Index) -> None:
        self.index = index
        self.ivf = faiss.try_extract_index_ivf(index)
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else None
        self.graph = inner.hnsw if inner is not None and hasattr(inner, "hnsw") else None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.index.ntotal)

    def efforts(self) -> list[int | None]:
        """Efforts to try, smallest first."""
        if self.ivf is not None:
            return [1 << power for power in range(int(self.ivf.nlist).bit_length())]
        return list(_WIDTHS) if self.graph is not None else [None]

    def candidates(self, queries: np.ndarray, count: int, effort: int | None, least: int = 0) -> NearestRows:
        """The index's `count` best rows for each of float32 [q, dim].

        Padded with -1 if the probed lists have fewer rows; a query with fewer than `least` probes more lists.
        """
        count = max(1, min(count, self.rows))
        least = min(least, count)
        found = self._search(queries, count, effort)
        short = np.flatnonzero((found.ids[:, :least] == NONE).any(axis=1))
        most = int(self.ivf.nlist) if self.ivf is not None else self.rows
        while effort is not None and len(short) and effort < most:
            effort = min(most, effort * 4)
            again = self._search(queries[short], count, effort)
            found.scores[short], found.ids[short] = again.scores, again.ids
            short = short[(again.ids[:, :least] == NONE).any(axis=1)]
        return found

    def _search(self, queries: np.ndarray, count: int, effort: int | None) -> NearestRows:
        if self.ivf is not None and effort is not None:
            self.ivf.nprobe = effort
        elif self.graph is not None and effort is not None:
            self.graph.efSearch = max(effort, count)
        scores, ids = self.index.search(np.ascontiguousarray(queries, np.float32), count)
        return NearestRows(scores, ids)


def open_file(location: str, lists: bool, mapped: bool = True) -> faiss.Index:
    """Read an index file, memory-mapped unless rows will be added.

    Raises RuntimeError if faiss cannot read it, or if it claims to hold more than a file of its size can.
    """
    flags = (faiss.IO_FLAG_MMAP if lists else faiss.IO_FLAG_MMAP_IFC) if mapped else 0
    with _bounded(files.stat(location).bytes + _TABLE_BYTES):
        return faiss.read_index(str(files.local_path(location)), flags)


@contextlib.contextmanager
def _bounded(most_bytes: int) -> Iterator[None]:
    """Within the block, faiss believes no file that claims to hold more than that: it allocates before it reads.

    The bound is faiss's own, for all of the process, so one file is read at a time.
    """
    with _READING:
        bytes_before = faiss.get_deserialization_vector_byte_limit()
        turns_before = faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(most_bytes + 1)
        faiss.set_deserialization_loop_limit(most_bytes)  # each turn reads a byte or more
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(bytes_before)
            faiss.set_deserialization_loop_limit(turns_before)


def index_faults(path: str, card: IndexCard, deep: bool = False) -> list[str]:
    """Faults in the file of a card; empty if there are none. deep: read all of it."""
    location = index_path(path, card)
    try:
        found = files.stat(location)
        if found.bytes != card.bytes:
            return [f"{location}: damaged: {found.bytes:,} bytes, should be {card.bytes:,}"]
        if ends_digest(location, card.bytes) != card.ends or (deep and files.sha256(location) != card.sha256):
            return [f"{location}: damaged: its checksum does not match"]
    except InputError:
        return [f"{location}: missing, though its card is there"]
    except OSError as problem:
        return [f"{location}: cannot be read: {problem.strerror or problem}"]
    return []


def check_index(path: str, modality: str, deep: bool = False) -> list[str]:
    """Faults in the index of one modality of a data set; empty if there are none, or no index.

    deep: checksum the whole file, not only its ends. Does not check whether it is up to date with the data.
    """
    try:
        card = read_card(path, modality)
    except DatasetError as problem:
        return [problem.what]
    return index_faults(path, card, deep) if card is not None else []


def open_card(path: str, modality: str) -> tuple[IndexCard, OpenIndex] | None:
    """The index of one modality of a data set and its card, or None if missing. Raises DatasetError if damaged."""
    for _ in range(2):  # another process may replace the index between the reads of card and file
        card = read_card(path, modality)
        if card is None:
            return None
        faults = index_faults(path, card)
        if not faults:
            return card, _open(path, card)
    raise DatasetError(faults[0], build_command(path, modality))


def _open(path: str, card: IndexCard) -> OpenIndex:
    location = index_path(path, card)
    local = local_file(location, Written(card.bytes, card.sha256))
    try:
        opened = OpenIndex(open_file(local, "IVF" in card.kind))
    except (RuntimeError, MemoryError) as problem:
        said = str(problem).rpartition("Error: ")[2].strip() or "too little memory"
        if "deserialization" in said:
            said = "it claims to hold more than a file of its size can"
        raise DatasetError(
            f"{location}: faiss {faiss.__version__} cannot read it: {said}",
            build_command(path, card.modality, rebuild=True),
        ) from problem
    if (opened.rows, opened.index.d) != (card.rows, card.dim):
        raise DatasetError(
            f"{location}: {opened.rows:,} rows of {opened.index.d}, but its card says {card.rows:,} of {card.dim}",
            build_command(path, card.modality, rebuild=True),
        )
    return opened
