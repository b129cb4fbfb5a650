"""Stream the rows of a plan: whole shards, or only the urls."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ..errors import InputError
from ..read.tables import table
from ..read.tables.table_file import TableFile
from .http.url import InvalidUrl, normalised
from .plan import FetchPlan, ShardRange
from .tables import image_folder
from .tables.recorded import difference, recorded
from .tables.schema import Layout

_BEING_WRITTEN = "Is it being written? What is committed is of the table as it was"


def shard_rows(plan: FetchPlan, wanted: frozenset[int]) -> Iterator[tuple[ShardRange, pa.Table]]:
    """The rows of the given shards with the schema `plan.layout.schema`, in order, one shard in memory at a time.

    Raises InputError if a table is no longer the one that was planned.
    """
    planned = {entry.name: entry for entry in recorded(plan.run) if not entry.retry}
    by_file: dict[TableFile, list[ShardRange]] = {}
    for shard in plan.shards:
        by_file.setdefault(shard.file, []).append(shard)
    for file, shards in by_file.items():
        if shards[0].source.members:
            if shards[0].number in wanted:
                yield shards[0], image_folder.folder_rows(plan.folder, shards[0].source, plan.rules)
            continue
        last = max((i for i, shard in enumerate(shards) if shard.number in wanted), default=-1)
        chosen = plan.layout.for_retry() if shards[0].retry else plan.layout
        rows = _Rows(table.batches(file, chosen.table, chosen.caption), chosen, file)
        for shard in shards[: last + 1]:
            if shard.number in wanted:
                taken = rows.take(shard.rows)
                if file.name in planned and (problem := difference(file, planned[file.name])) is not None:
                    raise InputError(problem, _BEING_WRITTEN)
                yield shard, taken
            else:
                rows.skip(shard.rows)


def planned_urls(plan: FetchPlan) -> Iterator[tuple[tuple[int, int], str]]:
    """Every url of the plan with its location: (shard, row in the shard). Rows without a url are left out.

    Urls of a round of retries carry its number: they repeat those of failed rows, but must be requested again.
    """
    if plan.images or plan.root:
        return  # what is on this machine is read as often as it is named
    by_file: dict[TableFile, list[ShardRange]] = {}
    for shard in plan.shards:
        by_file.setdefault(shard.file, []).append(shard)
    for file, shards in by_file.items():
        columns = plan.layout.table
        if file.ending == "parquet":
            columns = pa.schema([columns.field(plan.layout.url)])
        places = ((shard.number, row) for shard in shards for row in range(shard.rows))
        compared = _as_requested if plan.compares_requests else str
        mark = f"{shards[0].retry}\0" if shards[0].retry else ""
        for batch in table.batches(file, columns):
            urls = plan.layout.rows(batch).column("url").to_pylist()
            filled = ((place, url) for url, place in zip(urls, places, strict=False) if url and url.strip())
            yield from ((place, mark + compared(url)) for place, url in filled)


def _as_requested(url: str) -> str:
    try:
        return normalised(url)
    except InvalidUrl:
        return url


class _Rows:
    """Rows of one file, taken or skipped in any number."""

    def __init__(self, batches: Iterator[pa.RecordBatch], chosen: Layout, file: TableFile) -> None:
        self.batches = batches
        self.layout = chosen
        self.file = file
        self.rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> pa.Table:
        pieces = [self.layout.rows(piece) for piece in self._pieces(rows)]
        return pa.Table.from_batches(pieces, schema=self.layout.schema)

    def skip(self, rows: int) -> None:
        for _ in self._pieces(rows):
            pass

    def _pieces(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows:
            batch = self.rest if self.rest is not None else next(self.batches, None)
            if batch is None:
                raise InputError(f"{self.file.location}: has fewer rows than a moment ago", _BEING_WRITTEN)
            piece = batch.slice(0, rows)
            rows -= piece.num_rows
            self.rest = batch.slice(piece.num_rows) if batch.num_rows > piece.num_rows else None
            yield piece
