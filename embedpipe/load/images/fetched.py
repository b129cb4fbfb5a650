"""Images of shards that `fetch` wrote, by the place that their table gives: one read each, wherever in the tar."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pyarrow.compute as pc

from ... import files, manifest
from ...errors import DatasetError, InputError
from ...parquet_tables import read_table
from ...read import Reader
from ...read.webdataset import WebdatasetReader
from ..lru_cache import ByteLRUCache
from .parts import PartsReader

_HELD_BYTES = 64 << 20
_COLUMNS = ["key", "status", "offset", "bytes"]


class FetchedImages:
    """Looks images up in the shards of `reader`, as far as `fetch` wrote them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._tables = ByteLRUCache(_HELD_BYTES)
        self._written: dict[str, bool] = {}

    def find(self, shard: str, key: str) -> bytes | None:
        """The image file of a key in an input shard, by the shard's name in the data set; None if it is not known."""
        tar = self._tar(shard)
        if tar is None:
            return None
        with contextlib.suppress(InputError, OSError, pa.ArrowException):  # then the tar itself may still be read
            table: pa.Table = self._tables.get(tar, lambda: _table(tar))
            place = pc.index(table["key"], pa.scalar(key, pa.string())).as_py()
            if place >= 0:
                start, size = table["offset"][place].as_py(), table["bytes"][place].as_py()
                data = files.read_range(tar, start, start + size)
                return data if len(data) == size else None
        return None

    def _tar(self, shard: str) -> str | None:
        reader, name = self._reader, shard
        if isinstance(reader, PartsReader):
            if shard not in reader.held:
                return None
            held = reader.held[shard]
            reader, name = held.place.reader, held.shard.name
        if not isinstance(reader, WebdatasetReader) or not name.endswith(".tar") or not self._by_fetch(reader.data):
            return None
        return files.join(reader.data, name)

    def _by_fetch(self, folder: str) -> bool:
        if folder not in self._written:
            self._written[folder] = False
            with contextlib.suppress(DatasetError, InputError, OSError):
                run = manifest.read_run(folder) if files.is_folder(folder) else None
                self._written[folder] = run is not None and run.format == manifest.IMAGE_SHARDS
        return self._written[folder]


def _table(tar: str) -> pa.Table:
    """The stored images of a shard: key, offset and bytes."""
    table = read_table(f"{tar.removesuffix('.tar')}.parquet", _COLUMNS)
    known = pc.and_(pc.equal(table["status"], "success"), pc.is_valid(table["offset"]))
    return table.filter(known).select(["key", "offset", "bytes"])
