"""Failed rows without a later success, as a url table for another fetch."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet

from .. import files, manifest
from ..parquet_tables import read_table
from .config import FetchConfig
from .plan import FetchPlan, ShardRange, with_retry
from .tables.recorded import retry_file


def plan_round(plan: FetchPlan, out: str, config: FetchConfig) -> FetchPlan | None:
    """`plan`, grown by a round of all rows that still fail (with the requested error classes); None if there are none.

    Writes the list of those rows, in order. Memory is bounded except for the rows of earlier rounds.
    """
    retry = 1 + max(shard.retry for shard in plan.shards)
    file = retry_file(out, retry)
    pieces = failed_rows(plan, out, config)
    first = next(pieces, None)
    if first is None:
        return None
    rows = 0
    with files.writing(file.location) as stream, pyarrow.parquet.ParquetWriter(stream, first.schema) as writer:
        piece: pa.Table | None = first
        while piece is not None:
            writer.write_table(piece)
            rows += piece.num_rows
            piece = next(pieces, None)
    return with_retry(plan, out, rows, config)


def failed_rows(plan: FetchPlan, out: str, config: FetchConfig) -> Iterator[pa.Table]:
    """All rows that still fail (with the requested error classes), shard by shard; all shards are there."""
    digits = plan.run.shard_digits
    latest = _latest(plan, out)
    ours = {"url": plan.layout.url, **({"caption": plan.layout.caption} if plan.layout.caption else {})}
    theirs = {name: source for source, name in (*ours.items(), *plan.layout.passed.items())}
    wanted = plan.layout.for_retry()
    for shard in plan.shards:
        if shard.retry:
            continue
        table = _shard_table(out, shard, digits)
        keys, urls, classes = (table.column(name).to_pylist() for name in ("key", "url", "error_class"))
        chosen: dict[int, str] = {}
        for row, (key, url, error_class) in enumerate(zip(keys, urls, classes, strict=True)):
            now = latest.get(key, error_class) if error_class is not None else None
            if now is not None and config.retries_row(now, url):
                chosen[row] = now
        if chosen:
            rows = table.take(list(chosen))
            columns = [
                rows.column(theirs[name]).cast(wanted.table.field(name).type) for name in plan.layout.table.names
            ]
            columns += [rows.column("key"), pa.chunked_array([pa.array(list(chosen.values()))])]
            yield pa.table(columns, schema=wanted.table)


def _latest(plan: FetchPlan, out: str) -> dict[str, str | None]:
    """The last outcome of each retried row, by its key; None for success."""
    found: dict[str, str | None] = {}
    for shard in plan.shards:
        if shard.retry:
            table = _shard_table(out, shard, plan.run.shard_digits, ["retry_of", "error_class"])
            found.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return found


def _shard_table(out: str, shard: ShardRange, digits: int, columns: list[str] | None = None) -> pa.Table:
    return read_table(files.join(out, f"{manifest.shard_name(shard.number, digits)}.parquet"), columns)
