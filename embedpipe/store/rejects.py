"""The rejects of a shard: a parquet file of its own, the same in every storage format."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ..manifest import FileRecord
from ..types import EmbeddingShard
from . import layout
from .hashed import write_hashed

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
    path = layout.errors(shard.number, digits)
    return (write_hashed(root, path, lambda stream: pq.write_table(table, stream, compression="snappy")),)
