"""Key subsets: rows of an embedding data set by (source shard, key), independent of row numbers.

    kept.parquet   row (int64, at the time of writing), src_shard, key, and uid where the data set has that column
    subset.npy     the same in DataComp's format: an array of `u8,u8`, the two halves of each 128-bit uid, sorted

Input may also be a text file of keys, one per line, or a parquet file of keys alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import files
from .errors import InputError, did_you_mean
from .load import EmbeddingDataset

KEPT = "kept.parquet"
UIDS = "subset.npy"
UID = np.dtype("u8,u8")
_UID_DIGITS = 32
_ROWS_AT_ONCE = 100_000
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The result of looking up a subset. rows: int64, ascending, unique. missing: some keys not in the data set.

    asked: the number of distinct keys; absent: how many of them are not in the data set.
    """

    rows: np.ndarray
    asked: int
    absent: int
    missing: tuple[str, ...]


def read_subset(dataset: EmbeddingDataset, path: str) -> np.ndarray:
    """The rows (int64, ascending) in the subset file `path`, or in the kept.parquet of the folder `path`.

    Raises InputError if it cannot be read, or if keys are missing from the data set or in several of its source shards.
    """
    found = find_subset(dataset, path)
    if found.absent:
        raise InputError(
            f"{path}: {found.absent:,} of {found.asked:,} keys are not in {dataset.path}, such as "
            f"{', '.join(found.missing)}",
            "Give the subset of this data set",
        )
    return found.rows


def find_subset(dataset: EmbeddingDataset, path: str) -> FoundRows:
    """As `read_subset`, but missing keys are counted and listed instead of refused."""
    location = files.join(path, KEPT) if files.is_folder(path) else path
    if location.endswith(".npy"):
        return _by_uid(dataset, _read_uids(location))
    table = _read_keys(location)
    if "src_shard" in table.column_names:
        return _by_shard_and_key(dataset, table)
    return _by_key(dataset, location, table["key"].combine_chunks().unique())


def write_subset(dataset: EmbeddingDataset, location: str, rows: np.ndarray) -> None:
    """Write `rows` (ascending) as a parquet file: row, src_shard, key and, if there is one, uid."""
    names = ("src_shard", "key", *(("uid",) if "uid" in dataset.column_names() else ()))
    schema = pa.schema([("row", pa.int64()), *((name, pa.string()) for name in names)])
    with files.writing(location) as stream, pq.ParquetWriter(stream, schema) as writer:
        for some, table in _pieces(dataset, rows, names):
            table = table.add_column(0, pa.field("row", pa.int64()), pa.array(some))
            writer.write_table(table.cast(schema), row_group_size=_ROWS_AT_ONCE)


def write_uids(dataset: EmbeddingDataset, location: str, rows: np.ndarray, column: str = "uid") -> None:
    """Write the uids of `rows` as DataComp's subset file. Raises InputError for a value other than 32 hex digits."""
    parts = [
        _as_uids(table[column], f"{dataset.path}: column {column}") for _, table in _pieces(dataset, rows, (column,))
    ]
    uids = np.concatenate([np.empty(0, UID), *parts])
    uids.sort()
    with files.writing(location) as stream:
        np.save(stream, uids, allow_pickle=False)


def _pieces(
    dataset: EmbeddingDataset, rows: np.ndarray, columns: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """(some of `rows`, their metadata), in order; small shards are combined, so that row groups are not tiny."""
    held: list[pa.Table] = []
    first = last = 0
    for number, shard in enumerate(dataset.shards):
        stop = int(np.searchsorted(rows, shard.stop))
        if stop > last:
            held.append(dataset.metadata(number, columns).take(pa.array(rows[last:stop] - shard.start)))
            last = stop
        if last - first >= _ROWS_AT_ONCE:
            yield rows[first:last], pa.concat_tables(held)
            held, first = [], last
    if held:
        yield rows[first:last], pa.concat_tables(held)


def _read_keys(location: str) -> pa.Table:
    """A table with `key`, and `src_shard` if the file has it; both strings."""
    if not location.endswith(".parquet"):
        try:
            lines = files.read_bytes(location).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{location}: neither parquet, nor .npy, nor text in UTF-8",
                "Give a .parquet file with a column key, a .npy of DataComp, or a text file with one key a line",
            ) from problem
        return pa.table({"key": pa.array([line for line in lines if line.strip()], pa.string())})
    try:
        with files.reading(location) as stream:
            file = pq.ParquetFile(stream)
            there = file.schema_arrow.names
            if "key" not in there:
                raise InputError(f"{location}: no column key", did_you_mean("key", there))
            table = file.read(columns=[name for name in ("src_shard", "key") if name in there])
            return pa.table({name: table[name].cast(pa.string()) for name in table.column_names})
    except (OSError, pa.ArrowException) as problem:
        raise InputError(f"{location}: cannot be read: {problem}", "Give a whole parquet file") from problem


def _by_shard_and_key(dataset: EmbeddingDataset, table: pa.Table) -> FoundRows:
    wanted = dict(_keys_by_shard(table))
    rows = []
    asked = sum(len(keys) for keys in wanted.values())
    missing: list[str] = []
    found = 0
    for number, shard in enumerate(dataset.shards):
        keys = wanted.pop(shard.manifest.source.name, None)
        if keys is None:
            continue
        there = dataset.metadata(number, ("key",))["key"].combine_chunks()
        places = pc.index_in(keys, there)
        rows.append(shard.start + places.drop_null().to_numpy().astype(np.int64))
        found += len(rows[-1])
        missing += [f"{shard.manifest.source.name} {key}" for key in _first(keys.filter(places.is_null()))]
    missing += [f"{name} {key}" for name, keys in wanted.items() for key in _first(keys)]
    return FoundRows(_ascending(rows), asked, asked - found, tuple(missing[:_SHOWN]))


def _keys_by_shard(table: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """The distinct keys in `table`, by source shard."""
    named = table["src_shard"].combine_chunks().dictionary_encode(null_encoding="encode")
    codes = named.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    stops = np.searchsorted(codes[order], np.arange(len(named.dictionary)), side="right")
    keys, start = table["key"].combine_chunks(), 0
    for name, stop in zip(named.dictionary.to_pylist(), stops.tolist(), strict=True):
        yield str(name), keys.take(pa.array(order[start:stop])).unique()
        start = stop


def _by_key(dataset: EmbeddingDataset, location: str, keys: pa.Array) -> FoundRows:
    def places(number: int) -> np.ndarray:
        there = dataset.metadata(number, ("key",))["key"]
        place: np.ndarray = pc.fill_null(pc.index_in(there, keys), -1).to_numpy()
        return place

    found, met = _places(dataset, places, len(keys))
    if (met > 1).any():
        raise InputError(
            f"{location}: {dataset.path} has several rows of the key {keys[int(met.argmax())]}",
            "Name the source shard, too: a parquet file with the columns src_shard and key",
        )
    return _found(found, met, lambda place: str(keys[place]))


def _by_uid(dataset: EmbeddingDataset, uids: np.ndarray) -> FoundRows:
    """All rows of each uid: rows with the same uid are the same pair."""
    uids = np.unique(uids)

    def places(number: int) -> np.ndarray:
        there = _as_uids(dataset.metadata(number, ("uid",))["uid"], f"{dataset.path}: column uid")
        if not len(uids):
            return np.full(len(there), -1)
        place = np.minimum(np.searchsorted(uids, there), len(uids) - 1)
        return np.where(uids[place] == there, place, -1)

    found, met = _places(dataset, places, len(uids))
    return _found(found, met, lambda place: _hex(uids[place]))


def _places(
    dataset: EmbeddingDataset, places: Callable[[int], np.ndarray], asked: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows with one of the `asked` keys, shard by shard, and how often each key occurred, [asked].

    places: for a shard's index in the data set, the index among the keys of each of its rows, or -1.
    """
    met = np.zeros(asked, np.int64)
    rows = []
    for number, shard in enumerate(dataset.shards):
        place = places(number)
        rows.append(shard.start + np.flatnonzero(place >= 0))
        met += np.bincount(place[place >= 0], minlength=asked)
    return rows, met


def _found(rows: list[np.ndarray], met: np.ndarray, name: Callable[[int], str]) -> FoundRows:
    absent = np.flatnonzero(met == 0)
    return FoundRows(_ascending(rows), len(met), len(absent), tuple(name(place) for place in absent[:_SHOWN].tolist()))


def _ascending(rows: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.empty(0, np.int64), *rows]))


def _first(keys: pa.Array) -> list[str]:
    return [str(key) for key in keys.slice(0, _SHOWN)]


def _read_uids(location: str) -> np.ndarray:
    try:
        with files.reading(location) as stream:
            uids: np.ndarray = np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as problem:
        raise InputError(f"{location}: cannot be read: {problem}", "Give a subset file of DataComp") from problem
    if uids.dtype != UID or uids.ndim != 1:
        raise InputError(f"{location}: holds {uids.dtype} {list(uids.shape)}, not u8,u8 [n]", "Give one of DataComp's")
    return uids


def _as_uids(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Hex uids as `u8,u8` [n]."""
    texts = column.to_pylist()
    try:
        if {len(text) for text in texts} - {_UID_DIGITS}:
            raise ValueError
        halves = np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype("u8")
    except (TypeError, ValueError) as problem:
        raise InputError(f"{where}: not all are uids of {_UID_DIGITS} hex digits", "Choose rows by key") from problem
    return halves.view(UID)


def _hex(uid: np.void) -> str:
    return f"{int(uid[0]):016x}{int(uid[1]):016x}"
