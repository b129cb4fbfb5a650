"""The rejects of a shard: a parquet file of its own, the same in every storage format."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..errors import DatasetError, InputError
from ..manifest import FileRecord, ShardManifest
from ..types import EmbeddingShard
from . import layout
from .hashed import write_parquet

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("src_shard", pa.string()),
        ("src_index", pa.int64()),
        ("stage", pa.string()),
        ("error_class", pa.string()),
        ("message", pa.string()),
    ]
)


def write_rejects(root: str, shard: EmbeddingShard, source: str, digits: int) -> tuple[FileRecord, ...]:
    """Write them in input order; nothing where there are none."""
    if not shard.rejects:
        return ()
    rejects = sorted(shard.rejects, key=lambda reject: reject.index)
    rows = [(r.key, source, r.index, r.stage, r.error_class, r.message) for r in rejects]
    table = pa.table(list(map(list, zip(*rows, strict=True))), schema=_SCHEMA)
    return (write_parquet(root, layout.errors(shard.number, digits), table),)


def read_rejects(root: str, manifest: ShardManifest, digits: int) -> pa.Table:
    """The rejects of a committed shard, in input order. Raises DatasetError when they cannot be read."""
    path = layout.errors(manifest.number, digits)
    if path not in {record.path for record in manifest.files}:
        return _SCHEMA.empty_table()
    location = files.join(root, path)
    try:
        with files.reading(location) as stream:
            return pq.read_table(stream)
    except (OSError, pa.ArrowException, InputError) as problem:
        raise DatasetError(
            f"{location}: cannot be read: {problem}", "Run `embedpipe verify` to see which shards are bad"
        ) from problem
