"""Results of many queries as a table: one row per hit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..errors import InputError
from .searcher import Hit

COLUMNS = ("key", "caption", "src_shard", "url")
SUFFIXES = (".parquet", ".jsonl")
_SCHEMA = pa.schema(
    [
        ("query_index", pa.int64()),
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("row", pa.int64()),
        ("key", pa.string()),
        ("caption", pa.string()),
        ("src_shard", pa.string()),
        ("url", pa.string()),
    ]
)
_QUERIES_AT_ONCE = 1000

# The text of a query (None for an embedding), and its hits.
Answer = tuple[str | None, Sequence[Hit]]


def save_results(location: str, answers: Iterator[Answer]) -> int:
    """Write a .parquet (a row per hit) or a .jsonl (a line per query); returns the number of hits."""
    suffix = f".{location.rpartition('.')[2].lower()}"
    if suffix not in SUFFIXES:
        raise InputError(f"{location}: results are saved as {' or '.join(SUFFIXES)}")
    hits = 0
    with files.writing(location) as stream:
        if suffix == ".jsonl":
            for number, (query, found) in enumerate(answers):
                stream.write(f"{json.dumps(as_line(number, query, found), ensure_ascii=False)}\n".encode())
                hits += len(found)
            return hits
        with pq.ParquetWriter(stream, _SCHEMA) as writer:
            for table in _tables(answers):
                writer.write_table(table)
                hits += len(table)
    return hits


def as_line(number: int, query: str | None, hits: Sequence[Hit]) -> dict[str, object]:
    """One query and its hits as a JSON-serialisable dict."""
    return {"query_index": number, "query": query, "hits": [_plain(hit) for hit in hits]}


def _plain(hit: Hit) -> dict[str, object]:
    named = {name: hit.metadata.get(name) for name in COLUMNS}
    return {"rank": hit.rank, "score": hit.score, "row": hit.row, **named}


def _tables(answers: Iterator[Answer]) -> Iterator[pa.Table]:
    rows: list[dict[str, object]] = []
    for number, (query, hits) in enumerate(answers):
        rows += [{"query_index": number, "query": query, **_plain(hit)} for hit in hits]
        if (number + 1) % _QUERIES_AT_ONCE == 0:
            yield pa.Table.from_pylist(rows, _SCHEMA)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, _SCHEMA)
