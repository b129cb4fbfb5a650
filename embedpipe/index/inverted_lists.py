"""Inverted lists on disk: row codes, written part by part and merged into one file, never all in memory.

A part contains the codes of whole shards, in the order of the lists. Its name is `part-`, its first shard's number and
a hash of its inputs, so that a worker that was presumed dead and resumes can only rewrite identical files:

    NAME.codes.npy   uint8 [n, code bytes]
    NAME.ids.npy     int64 [n]
    NAME.json        its shards, and the number of rows in each list; written last: a part without it does not exist
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import pydantic

from .. import files
from ..errors import InputError
from .card import IndexedShard
from .ids import shard_numbers
from .library import faiss

_MERGE_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class ListPart:
    """The record of a part. sizes: rows in each list."""

    name: str
    shards: tuple[IndexedShard, ...]
    sizes: tuple[int, ...]


_PART: pydantic.TypeAdapter[ListPart] = pydantic.TypeAdapter(ListPart)


def code_bytes(index: faiss.Index) -> int:
    """Bytes of a row's code in the inverted lists of `index`."""
    size: int = faiss.extract_index_ivf(index).code_size
    return size


def encode_rows(index: faiss.Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(list of each row, int64 [n]; its code, uint8 [n, code bytes]) for float32 [n, dim]."""
    # faiss' standalone code of a row is its list number, little-endian, followed by its code in the list.
    packed = index.sa_encode(rows)
    width = packed.shape[1] - code_bytes(index)
    number = np.zeros(len(packed), np.int64)
    for byte in range(width):
        number |= packed[:, byte].astype(np.int64) << (8 * byte)
    return number, packed[:, width:]


def part_name(made_with: str, shards: Sequence[IndexedShard]) -> str:
    """The name of the part with those shards. made_with: the digest of the trained index."""
    said = json.dumps([made_with, [dataclasses.astuple(shard) for shard in shards]])
    return f"part-{shards[0].number:09d}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def write_part(
    folder: str,
    name: str,
    shards: Sequence[IndexedShard],
    lists: int,
    number: np.ndarray,
    codes: np.ndarray,
    ids: np.ndarray,
) -> None:
    """Commit the rows of some shards: their lists, codes and ids, in the order of ids."""
    order = np.argsort(number, kind="stable")
    for suffix, array in (("codes", codes), ("ids", ids)):
        with files.writing(files.join(folder, f"{name}.{suffix}.npy")) as stream:
            np.save(stream, array[order])
    sizes = tuple(np.bincount(number, minlength=lists).tolist())
    document = json.dumps(dataclasses.asdict(ListPart(name, tuple(shards), sizes)))
    files.write_bytes(files.join(folder, f"{name}.json"), document.encode())


def read_parts(folder: str) -> list[ListPart]:
    """The committed parts in `folder`, in the order of their shards."""
    stems = [name for name in files.names(folder, ".json") if name.startswith("part-")]
    return [read_list_part(folder, name.removesuffix(".json")) for name in stems]


def read_list_part(folder: str, name: str) -> ListPart:
    """The committed part of that name."""
    return _PART.validate_json(files.read_bytes(files.join(folder, f"{name}.json")))


class ListSource(Protocol):
    """Rows in the order of lists: a part, or an existing index."""

    sizes: np.ndarray

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(list int64 [n], codes uint8 [n, c], ids int64 [n]) of the lists [first, last)."""
        ...


class PartSource:
    """The rows of a committed part, memory-mapped."""

    def __init__(self, folder: str, part: ListPart) -> None:
        self.sizes = np.array(part.sizes, np.int64)
        self._stops = np.concatenate(([0], np.cumsum(self.sizes)))
        place = files.local_path(folder)
        self._codes = np.load(place / f"{part.name}.codes.npy", mmap_mode="r")
        self._ids = np.load(place / f"{part.name}.ids.npy", mmap_mode="r")

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `ListSource`."""
        mine = slice(self._stops[first], self._stops[last])
        return np.repeat(np.arange(first, last), self.sizes[first:last]), self._codes[mine], self._ids[mine]


class IndexSource:
    """The rows of an index with inverted lists, without those of some shards."""

    def __init__(self, index: faiss.Index, without: Sequence[int]) -> None:
        self._ivf = faiss.extract_index_ivf(index)
        self._index = index  # keeps a reference to the lists
        self._without = np.array(sorted(without), np.int64)
        lists: Any = self._ivf.invlists
        self._all = np.array([lists.list_size(number) for number in range(self._ivf.nlist)], np.int64)
        self.sizes = self._all
        if len(self._without):
            self.sizes = np.array([len(self._one(number)[1]) for number in range(self._ivf.nlist)], np.int64)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `ListSource`."""
        found = [self._one(number) for number in range(first, last)]
        number = np.repeat(np.arange(first, last), self.sizes[first:last])
        return number, np.concatenate([codes for codes, _ in found]), np.concatenate([ids for _, ids in found])

    def _one(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        width, size = self._ivf.code_size, int(self._all[number])
        if not size:
            return np.empty((0, width), np.uint8), np.empty(0, np.int64)
        lists: Any = self._ivf.invlists
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * width).reshape(size, width)
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
        stays = ~np.isin(shard_numbers(ids), self._without)
        return codes[stays], ids[stays]


def emptied(index: faiss.Index) -> faiss.Index:
    """The same trained index without rows."""
    ivf = faiss.extract_index_ivf(index)
    nothing: Any = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    ivf.replace_invlists(nothing, True)
    nothing.this.disown()
    index.ntotal = ivf.ntotal = 0
    return index


def require_lists(index: faiss.Index, kind: str) -> None:
    """Raise InputError unless `merge_parts` can write the lists of this (empty) index."""
    try:
        _head(index, 0)
    except ValueError as problem:
        raise InputError(
            f"`kind={kind!r}`: its inverted lists cannot be merged on disk ({problem})",
            "Give one without fast-scan (…fs) or refining (…,RFlat): found rows are compared again anyway",
        ) from problem


def _head(index: faiss.Index, rows: int) -> bytes:
    """The file of an index with that many rows, up to its inverted lists, which faiss writes last."""
    ivf = faiss.extract_index_ivf(index)
    index.ntotal = ivf.ntotal = rows
    written = faiss.serialize_index(index).tobytes()
    index.ntotal = ivf.ntotal = 0
    none = b"ilar" + struct.pack("<QQ", ivf.nlist, ivf.code_size) + b"sprs" + struct.pack("<Q", 0)
    if not written.endswith(none):
        raise ValueError("they are no plain arrays at the end of faiss' file")
    return written[: -len(none)]


def merge_parts(trained: faiss.Index, sources: Sequence[ListSource], stream: BinaryIO) -> None:
    """Write one index file with all rows of `sources`, in faiss' own format.

    `trained` is empty. Within a list, rows are in the order of `sources`. Only some lists are in memory at a time.
    """
    ivf = faiss.extract_index_ivf(trained)
    sizes = sum((source.sizes for source in sources), np.zeros(ivf.nlist, np.int64))
    stream.write(_head(trained, int(sizes.sum())))
    stream.write(b"ilar" + struct.pack("<QQ", ivf.nlist, ivf.code_size) + b"full" + struct.pack("<Q", ivf.nlist))
    stream.write(sizes.astype("<u8").tobytes())
    for first, last in _runs(sizes * (ivf.code_size + 8)):
        parts = [source.read(first, last) for source in sources]
        order = np.argsort(np.concatenate([number for number, _, _ in parts]), kind="stable")
        codes = np.concatenate([codes for _, codes, _ in parts])[order]
        ids = np.concatenate([ids for _, _, ids in parts])[order]
        stop = 0
        for size in sizes[first:last].tolist():
            start, stop = stop, stop + size
            stream.write(codes[start:stop].tobytes())
            stream.write(ids[start:stop].astype("<i8").tobytes())


def _runs(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """[first, last) of neighbouring lists with about that many bytes together, at least one list each."""
    first = 0
    filled = 0
    for number, size in enumerate(sizes.tolist()):
        if filled and filled + size > _MERGE_BYTES:
            yield first, number
            first, filled = number, 0
        filled += size
    if first < len(sizes):
        yield first, len(sizes)
