"""Choose the index type and its parameters from the number of rows and a memory budget, or from the user's option."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import InputError, OptionError, did_you_mean

FLAT_ROWS = 50_000  # below, comparing with every row takes milliseconds, and finds all
KINDS = ("auto", "flat", "hnsw", "ivf", "ivf-sq8", "ivf-pq")
ROWS_PER_CENTROID = 64  # to train on; a centroid is a mean, more would hardly move it
_FEWEST_PER_CENTROID = 32
_FLAT_QUANTIZER_LISTS = 8192  # from then on a graph finds a row's list sooner than comparing with each
_MOST_LISTS = 1 << 16
ID_BYTES = 8
_PQ_BYTES = (128, 96, 64, 48, 32, 24, 16, 8)
_HNSW_LINKS = 32
_FACTORY_NAME = re.compile(r"[A-Za-z0-9_,()\[\]:x+.-]+")
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class IndexType:
    """An index type. factory: faiss' name of it. lists: inverted lists, 0 where the index is held in memory whole.

    row_bytes: what a row takes in the index, as far as that is known (0: it is not).
    training_rows: how many rows it is trained on. candidates: whether found rows are compared again by their stored
    embeddings.
    """

    factory: str
    lists: int
    row_bytes: int
    training_rows: int
    candidates: bool

    def index_bytes(self, rows: int, dim: int) -> int:
        """About how large the index of so many rows is."""
        return rows * self.row_bytes + self.lists * dim * 4


def parse_bytes(text: str) -> int:
    """`8G`, `512M` or a number of bytes. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise OptionError(f"--memory {text!r} is no size", "For example: --memory 8G or 512M")
    return int(float(found[1]) * _SUFFIXES[found[2].upper()])


def choose_index_type(name: str, rows: int, dim: int, memory_bytes: int, look_up: bool) -> IndexType:
    """The index type for `rows` rows of `dim`: `name` is one of KINDS, or faiss' own name of a type.

    look_up: whether stored rows can be read one by one, so that the index need hold no more of a row than it takes to
    find candidates. Raises InputError for an unknown name, and for a type held in memory that does not fit into it.
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
        # One bit for each value holds most when all values vary alike: a random rotation sees to that.
        "ivf": IndexType(f"RR{dim},{coarse},RaBitQ", lists, -(-dim // 8) + 8 + ID_BYTES, training_rows, look_up),
        "ivf-sq8": IndexType(f"{coarse},SQ8", lists, dim + ID_BYTES, training_rows, look_up),
        "ivf-pq": _product_quantized(coarse, lists, rows, dim, memory_bytes, training_rows, look_up),
    }
    if name != "auto":
        return options[name]
    # One bit for each value finds candidates; without a second look at the stored rows it takes eight.
    first = options["ivf" if look_up else "ivf-sq8"]
    return first if first.index_bytes(rows, dim) <= memory_bytes else options["ivf-pq"]


def _fitting(kind: IndexType, name: str, rows: int, dim: int, memory_bytes: int) -> IndexType:
    size = kind.index_bytes(rows, dim)
    if size > memory_bytes:
        raise InputError(
            f"--type {name}: {rows:,} rows of {dim} take {size / 2**30:.1f} GiB of memory, more than the budget of "
            f"{memory_bytes / 2**30:.1f} GiB",
            "Give a larger --memory, or --type ivf, which is read from disk",
        )
    return kind


def _lists(rows: int, dim: int, memory_bytes: int) -> tuple[int, int]:
    """(inverted lists, training rows): about the square root of the rows, as far as the training sample has room."""
    lists = 1 << max(0, round(math.log2(max(1, math.sqrt(rows)))))
    room = memory_bytes // 4 // (dim * 4)  # of the budget: the sample, and what k-means makes of it
    lists = max(1, min(lists, _MOST_LISTS, room // _FEWEST_PER_CENTROID))
    return lists, min(rows, room, lists * ROWS_PER_CENTROID)


def _product_quantized(
    coarse: str, lists: int, rows: int, dim: int, memory_bytes: int, training_rows: int, look_up: bool
) -> IndexType:
    """The longest product-quantized codes with which the index fits into memory, or the shortest there are."""
    possible = [m for m in _PQ_BYTES if dim % m == 0 and m <= dim // 4] or [1]
    room = (memory_bytes - lists * dim * 4) // max(1, rows) - ID_BYTES
    length = next((m for m in possible if m <= room), possible[-1])
    # 256 centroids for each part: fewer rows than some 10,000 would not train them well, but do.
    return IndexType(f"{coarse},PQ{length}", lists, length + ID_BYTES, training_rows, look_up)


def _named(name: str, rows: int, dim: int, memory_bytes: int, look_up: bool) -> IndexType:
    """A type by faiss' own name, such as IVF4096,SQ8 or HNSW16."""
    if not _FACTORY_NAME.fullmatch(name) or not any(character.isupper() for character in name):
        raise OptionError(f"--type {name}: no such index type", f"{did_you_mean(name, KINDS)} Or faiss' name of one")
    found = re.search(r"IVF(\d+)", name)
    if found is None:
        # What such an index holds is known to faiss only: HNSW and Flat keep four bytes for each value.
        known = re.fullmatch(r"Flat|HNSW(\d*)(?:,Flat)?", name)
        links = int(known[1] or _HNSW_LINKS) * 8 if known and known[0] != "Flat" else 0
        size = dim * 4 + links + ID_BYTES if known else 0
        return _fitting(IndexType(name, 0, size, min(rows, 65_536), False), name, rows, dim, memory_bytes)
    lists = int(found[1])
    room = memory_bytes // 4 // (dim * 4)
    if lists > min(rows, room):
        raise InputError(
            f"--type {name}: {lists:,} lists cannot be trained on {min(rows, room):,} rows",
            "Give fewer lists" if room >= rows else "Give fewer lists, or a larger --memory",
        )
    return IndexType(name, lists, 0, min(rows, room, max(lists * ROWS_PER_CENTROID, 65_536)), look_up)
