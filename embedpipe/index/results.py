"""Results as a table, one row per hit, or as a contact sheet."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..errors import OptionError
from ..images.pages import contact_page
from ..images.sheet import SheetCell, contact_sheet
from ..load import EmbeddingDataset
from ..load.images.source import Images, places_of, source_images
from ..plural import plural
from .searcher import Hit

COLUMNS = ("key", "caption", "src_shard", "url")
SUFFIXES = (".parquet", ".jsonl")
SHEETS = (".png", ".html")
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

logger = logging.getLogger(__name__)

# The text of a query (None for an embedding), and its hits.
Answer = tuple[str | None, Sequence[Hit]]


def save_results(location: str, answers: Iterator[Answer]) -> int:
    """Write a .parquet (a row per hit) or a .jsonl (a line per query); returns the number of hits."""
    check_suffix(location, many=True)
    hits = 0
    with files.writing(location) as stream:
        if location.lower().endswith(".jsonl"):
            for number, (query, found) in enumerate(answers):
                stream.write(f"{json.dumps(as_line(number, query, found), ensure_ascii=False, default=str)}\n".encode())
                hits += len(found)
            return hits
        with pq.ParquetWriter(stream, _SCHEMA) as writer:
            for table in _tables(answers):
                writer.write_table(table)
                hits += len(table)
    return hits


def check_suffix(location: str, many: bool) -> None:
    """Raise OptionError for a file of another kind than results are written to. many: those of many queries."""
    suffixes = SUFFIXES if many else (*SHEETS, *SUFFIXES)
    if not location.lower().endswith(suffixes):
        raise OptionError(f"{location}: results{' of many queries' * many} are saved as {', '.join(suffixes)}")


def save_sheet(location: str, dataset: EmbeddingDataset, hits: Sequence[Hit], title: str, images: Images) -> None:
    """Write the images of hits as a .png or .html; those not at `images`, or where they were, are left blank."""
    pictures = source_images(dataset, [(hit.src_shard, hit.key) for hit in hits], images)
    missing = sum((hit.src_shard, hit.key) not in pictures for hit in hits)
    if missing:
        given = ", ".join(places_of(images))
        logger.warning("%s left blank%s; see `images`", plural(missing, "image"), f": not in {given}" if given else "")
    cells = [SheetCell(pictures.get((hit.src_shard, hit.key)), f"{hit.score:.3f} {hit.caption or ''}") for hit in hits]
    make = contact_page if location.lower().endswith(".html") else contact_sheet
    files.write_bytes(location, make(cells, title))


def as_line(number: int, query: str | None, hits: Sequence[Hit]) -> dict[str, object]:
    """One query and its hits as a JSON-serialisable dict."""
    return {"query_index": number, "query": query, "hits": [hit_as_json(hit) for hit in hits]}


def hit_as_json(hit: Hit) -> dict[str, object]:
    """A hit as a JSON-serialisable dict, the same for one query and for many: see docs/searching.md."""
    return {**_plain(hit), "metadata": hit.metadata}


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
