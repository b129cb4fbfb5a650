"""The rejects of a shard: a separate parquet file, the same in every storage format."""

from __future__ import annotations

import pyarrow as pa

from .. import files
from ..errors import DatasetError, InputError
from ..manifest import FileRecord, ShardManifest
from ..parquet_tables import read_table
from ..types import EmbeddingShard
from . import layout
from .hashed_writer import REMEDY, require_written, write_parquet

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
    """Write them in input order; no file if there are none."""
    if not shard.rejects:
        return ()
    rejects = sorted(shard.rejects, key=lambda reject: reject.index)
    rows = [(r.key, source, r.index, r.stage, r.error_class, r.message) for r in rejects]
    table = pa.table(list(map(list, zip(*rows, strict=True))), schema=_SCHEMA)
    return (write_parquet(root, layout.errors(shard.number, digits), table),)


def read_rejects(root: str, manifest: ShardManifest, digits: int) -> pa.Table:
    """The rejects of a shard, in input order. Raises DatasetError if they contradict the manifest."""
    record = manifest.file(layout.errors(manifest.number, digits))
    if record is None:
        return _SCHEMA.empty_table()
    location = files.join(root, record.path)
    require_written(root, record)
    try:
        table = read_table(location)
    except (OSError, pa.ArrowException, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", REMEDY) from problem
    if table.num_rows != manifest.rows_rejected or not table.schema.equals(_SCHEMA):
        raise DatasetError(
            f"{location}: {table.num_rows} rows of {', '.join(table.column_names)}, "
            f"but its manifest says {manifest.rows_rejected} rejects",
            REMEDY,
        )
    return table
