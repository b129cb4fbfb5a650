"""Storage formats of embedding shards. FORMATS maps a name to its writer and reader."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DatasetError, did_you_mean
from . import npy, parquet
from .base import Contents, ShardPaths, ShardReader, ShardWriter


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format: its writer, its reader, and the files of a shard.

    own_columns: names reserved for embeddings, not allowed for metadata columns.
    """

    write: ShardWriter
    reader: ShardReader
    paths: ShardPaths
    own_columns: tuple[str, ...] = ()


FORMATS = {
    "npy": Format(npy.write, npy.NpyReader(), npy.paths),
    "parquet": Format(parquet.write, parquet.ParquetReader(), parquet.paths, parquet.OWN_COLUMNS),
}

__all__ = ["FORMATS", "Contents", "Format", "ShardPaths", "ShardReader", "ShardWriter", "open_format"]


def open_format(name: str) -> Format:
    """The format `name`. Raises DatasetError listing the known ones."""
    if name not in FORMATS:
        raise DatasetError(f"no storage format {name!r}", did_you_mean(name, FORMATS))
    return FORMATS[name]
