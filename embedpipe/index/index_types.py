"""Choose the index type and its parameters from the number of rows and a memory budget, or from the user's option."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import InputError, OptionError, did_you_mean

FLAT_ROWS = 50_000  # below, exact search takes milliseconds
KINDS = ("auto", "flat", "hnsw", "ivf", "ivf-sq8", "ivf-pq")
ROWS_PER_CENTROID = 64  # of the training sample; a centroid is a mean, more would hardly move it
_FEWEST_PER_CENTROID = 32
_FLAT_QUANTIZER_LISTS = 8192  # from here on a graph finds a row's list faster than brute force
_MOST_LISTS = 1 << 16
ID_BYTES = 8
_PQ_BYTES = (128, 96, 64, 48, 32, 24, 16, 8)
_HNSW_LINKS = 32
_FACTORY_NAME = re.compile(r"[A-Za-z0-9_,()\[\]:x+.-]+")
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class IndexType:
    """An index type. factory: faiss' factory string. lists: inverted lists, 0 if the index is built in memory.

    row_bytes: bytes per row in the index (0: unknown). training_rows: how many rows it is trained on. candidates:
    whether found rows are re-ranked by their stored embeddings.
    """

    factory: str
    lists: int
    row_bytes: int
    training_rows: int
    candidates: bool

    def index_bytes(self, rows: int, dim: int) -> int:
        """The approximate size of the index of that many rows."""
        return rows * self.row_bytes + self.lists * dim * 4


def parse_bytes(text: str) -> int:
    """`8G`, `512M` or a number of bytes. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise OptionError(f"`memory={text!r}` is no size", "For example 8G or 512M")
    return int(float(found[1]) * _SUFFIXES[found[2].upper()])


def choose_index_type(name: str, rows: int, dim: int, memory_bytes: int, look_up: bool) -> IndexType:
    """The index type for `rows` rows of `dim`: `name` is one of KINDS, or a faiss factory string.

    look_up: whether stored rows can be read one by one, so that short codes suffice to find candidates. Raises
    InputError for an unknown name, and for an in-memory type that exceeds the budget.
    """
    if name not in KINDS:
        return _named(name, rows, dim, memory_bytes, look_up)
    if name == "flat" or (name == "auto" and rows <= FLAT_ROWS):
        flat = IndexType("Flat", 0, dim * 4 + ID_BYTES, 0, False)
        if name == "flat" or flat.index_bytes(rows, dim) <= memory_bytes // 2:
            return _fitting(flat, name, rows, dim, memory_bytes)
    if name == "hnsw":
        links = _HNSW_LINKS * 2 * 4
        return _fitting(
            IndexType(f"HNSW{_HNSW_LINKS}", 0, dim * 4 + links + ID_BYTES, 0, False), name, rows, dim, memory_bytes
        )
    lists, training_rows = _lists(rows, dim, memory_bytes)
    coarse = f"IVF{lists}" if lists < _FLAT_QUANTIZER_LISTS else f"IVF{lists}_HNSW32"
    options = {
        # One bit per value carries most information if all values vary equally: a random rotation ensures that.
        "ivf": IndexType(f"RR{dim},{coarse},RaBitQ", lists, -(-dim // 8) + 8 + ID_BYTES, training_rows, look_up),
        "ivf-sq8": IndexType(f"{coarse},SQ8", lists, dim + ID_BYTES, training_rows, look_up),
        "ivf-pq": _product_quantized(coarse, lists, rows, dim, memory_bytes, training_rows, look_up),
    }
    if name != "auto":
        return options[name]
    # One bit per value suffices to find candidates; without re-ranking it takes eight.
    first = options["ivf" if look_up else "ivf-sq8"]
    return first if first.index_bytes(rows, dim) <= memory_bytes else options["ivf-pq"]


def _fitting(kind: IndexType, name: str, rows: int, dim: int, memory_bytes: int) -> IndexType:
    size = kind.index_bytes(rows, dim)
    if size > memory_bytes:
        raise InputError(
            f"`kind={name!r}`: {rows:,} rows of {dim} take {size / 2**30:.1f} GiB of memory, more than the budget of "
            f"{memory_bytes / 2**30:.1f} GiB",
            "Give a larger `memory`, or `kind='ivf'`, which is read from disk",
        )
    return kind


def _lists(rows: int, dim: int, memory_bytes: int) -> tuple[int, int]:
    """(inverted lists, training rows): about the square root of the rows, limited by memory for the training sample."""
    lists = 1 << max(0, round(math.log2(max(1, math.sqrt(rows)))))
    room = memory_bytes // 4 // (dim * 4)  # a quarter of the budget: for the sample, and k-means' own copies
    lists = max(1, min(lists, _MOST_LISTS, room // _FEWEST_PER_CENTROID))
    return lists, min(rows, room, lists * ROWS_PER_CENTROID)


def _product_quantized(
    coarse: str, lists: int, rows: int, dim: int, memory_bytes: int, training_rows: int, look_up: bool
) -> IndexType:
    """The longest product-quantized codes with which the index fits in memory, or the shortest possible."""
    possible = [m for m in _PQ_BYTES if dim % m == 0 and m <= dim // 4] or [1]
    room = (memory_bytes - lists * dim * 4) // max(1, rows) - ID_BYTES
    length = next((m for m in possible if m <= room), possible[-1])
    # 256 centroids per part: fewer than some 10,000 rows train them poorly, but still work.
    return IndexType(f"{coarse},PQ{length}", lists, length + ID_BYTES, training_rows, look_up)


def _named(name: str, rows: int, dim: int, memory_bytes: int, look_up: bool) -> IndexType:
    """A type from a faiss factory string, such as IVF4096,SQ8 or HNSW16."""
    if not _FACTORY_NAME.fullmatch(name) or not any(character.isupper() for character in name):
        raise OptionError(
            f"`kind={name!r}`: no such index type", f"A factory string of faiss works, too. {did_you_mean(name, KINDS)}"
        )
    found = re.search(r"IVF(\d+)", name)
    if found is None:
        # Only faiss knows the size of such an index: HNSW and Flat store four bytes per value.
        known = re.fullmatch(r"Flat|HNSW(\d*)(?:,Flat)?", name)
        links = int(known[1] or _HNSW_LINKS) * 8 if known and known[0] != "Flat" else 0
        size = dim * 4 + links + ID_BYTES if known else 0
        return _fitting(IndexType(name, 0, size, min(rows, 65_536), False), name, rows, dim, memory_bytes)
    lists = int(found[1])
    room = memory_bytes // 4 // (dim * 4)
    if lists > min(rows, room):
        raise InputError(
            f"`kind={name!r}`: {lists:,} lists cannot be trained on {min(rows, room):,} rows",
            "Give fewer lists" if room >= rows else "Give fewer lists, or a larger `memory`",
        )
    return IndexType(name, lists, 0, min(rows, room, max(lists * ROWS_PER_CENTROID, 65_536)), look_up)
