"""Queries (a text, an image, the key of a row, an embedding, or a file of many) and their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, OptionError
from ..load import EmbeddingDataset
from ..load.images.source import Images
from ..progress import CutCaptions, Listener, Progress, silent
from ..read.delimited import DialectOptions
from ..renamed import renamed_keyword
from .query_files import read_embeddings, read_queries
from .query_model import embed_image, embed_texts, query_encoder
from .results import COLUMNS, SHEETS, Answer, check_suffix, save_results, save_sheet
from .searcher import Hit, Searcher, row_of_key

if TYPE_CHECKING:
    from ..clip_model.spec import ModelOptions
    from ..encode import Encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """One of: text; image (a file); key (of a row, in the source shard `shard` if several have it); embedding (an .npy
    file, and a `row` of it); queries (a file, and a `column` of it; `quoting`, `delimiter` and `encoding` describe a
    text file that is not to be detected).
    """

    text: str | None = None
    image: str | None = None
    key: str | None = None
    shard: str | None = None
    embedding: str | None = None
    row: int | None = None
    queries: str | Sequence[str] | np.ndarray | None = None
    column: str | None = None
    quoting: str = "auto"
    delimiter: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        _ = self.dialect  # which checks its values
        ways = (self.text, self.image, self.key, self.embedding, self.queries)
        if sum(way is not None for way in ways) != 1:
            raise OptionError(
                "give one of a text, `image`, `key`, `embedding` or `queries`",
                'For example: embedpipe search emb "a red bicycle"',
            )
        for name, value, beside, needed in (
            ("shard", self.shard, "key", self.key),
            ("row", self.row, "embedding", self.embedding),
            ("column", self.column, "queries", self.queries),
            ("quoting", None if self.quoting == "auto" else self.quoting, "queries", self.queries),
            ("delimiter", self.delimiter, "queries", self.queries),
            ("encoding", self.encoding, "queries", self.queries),
        ):
            if value is not None and needed is None:
                raise OptionError(f"`{name}` is only of use with `{beside}`")

    @property
    def dialect(self) -> DialectOptions:
        """What is known of the dialect of `queries`."""
        return DialectOptions(self.quoting, self.delimiter, self.encoding)

    @property
    def title(self) -> str:
        """A title for display."""
        return self.text or f"like {self.image or self.key or self.embedding or self.queries}"


@renamed_keyword(data="images")
def search(
    dataset: EmbeddingDataset | Searcher | str,
    query: np.ndarray | str | Query,
    k: int = 10,
    modality: str = "image",
    min_score: float | None = None,
    exact: bool = False,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    options: ModelOptions | None = None,
    encoder: Encoder | None = None,
    save: str | None = None,
    images: Images = None,
    listen: Listener = silent,
) -> list[Hit]:
    """The `k` rows of `dataset` whose `modality` embedding is nearest to a query, best first.

    query: an embedding ([dim]), a text, or a `Query`: Query(image="photo.jpg"), Query(key="000000012"). Fewer hits when
    the data set has fewer rows, or when others score less than `min_score`. Without an index (or with `exact`) all rows
    are compared. Several queries share one `Searcher` in the place of `dataset`, and one `encoder`.

    model, pretrained, options: where the encoder is now, see `query_encoder`. save: write the hits to a contact sheet
    (.png, .html; `images` is where the image shards are now) or a table (.parquet, .jsonl).
    """
    if save is not None:
        check_suffix(save, many=False)
    searcher = _searcher(dataset, modality, exact)
    if isinstance(query, np.ndarray):
        hits, text, title = next(searcher.hits(query[None], k, min_score, listen=listen)), None, "like an embedding"
    else:
        asked = Query(query) if isinstance(query, str) else query
        load = _loading(searcher.dataset, encoder, model, pretrained, options)
        ((_, found),) = run_queries(searcher, asked, load, k, min_score, listen, logger.warning)
        hits, text, title = list(found), asked.text, asked.title
    if save is not None and save.lower().endswith(SHEETS):
        save_sheet(save, searcher.dataset, hits, title, images)
    elif save is not None:
        save_results(save, iter([(text, hits)]))
    return hits


def search_many(
    dataset: EmbeddingDataset | Searcher | str,
    queries: str | Sequence[str] | np.ndarray | Query,
    k: int = 10,
    modality: str = "image",
    min_score: float | None = None,
    exact: bool = False,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    options: ModelOptions | None = None,
    encoder: Encoder | None = None,
    listen: Listener = silent,
    all_metadata: bool = False,
) -> Iterator[Answer]:
    """Each query's text (None where it is an embedding) and hits, in order; `save_results` writes them.

    queries: texts, embeddings [n, dim], a file of either, or a `Query` of one. all_metadata: hits hold all columns, not
    only key, caption, src_shard and url. The others: see `search`.
    """
    searcher = _searcher(dataset, modality, exact)
    load = _loading(searcher.dataset, encoder, model, pretrained, options)
    asked = queries if isinstance(queries, Query) else Query(queries=queries)
    return run_queries(searcher, asked, load, k, min_score, listen, logger.warning, all_metadata)


def _searcher(dataset: EmbeddingDataset | Searcher | str, modality: str, exact: bool) -> Searcher:
    if isinstance(dataset, Searcher):
        return dataset
    return Searcher(EmbeddingDataset(dataset) if isinstance(dataset, str) else dataset, modality, exact)


def _loading(
    dataset: EmbeddingDataset,
    encoder: Encoder | None,
    model: str | None,
    pretrained: str | None,
    options: ModelOptions | None,
) -> Callable[[], Encoder]:
    return lambda: encoder or query_encoder(dataset, model, pretrained, options=options)


def run_queries(
    searcher: Searcher,
    asked: Query,
    load_encoder: Callable[[], Encoder],
    k: int = 10,
    min_score: float | None = None,
    listen: Listener = silent,
    note: Callable[[str], None] = lambda _: None,
    all_metadata: bool = False,
) -> Iterator[Answer]:
    """The text (or None) and the hits of each query, in order.

    Hits have all metadata, if it is a single query or `all_metadata`; else key, caption, src_shard and url.

    `listen` receives progress: finished queries, or rows compared with a single query without an index. load_encoder is
    called if there is something to embed; `note`, at the end, if a text was longer than the encoder's context. Raises
    InputError, and the errors of loading the encoder.
    """
    many = asked.queries is not None
    columns = COLUMNS if many and not all_metadata else None
    rows = silent if many else listen
    for texts, vectors in _embedded(searcher, asked, load_encoder, listen, note):
        for text, hits in zip(texts, searcher.hits(vectors, k, min_score, columns, rows), strict=True):
            yield text, hits
            if many:
                listen(Progress(rows=1))


def _embedded(
    searcher: Searcher,
    asked: Query,
    load_encoder: Callable[[], Encoder],
    listen: Listener,
    note: Callable[[str], None],
) -> Iterator[tuple[list[str | None], np.ndarray]]:
    """Blocks of queries: their texts and float32 [n, dim]."""
    if asked.key is not None:
        column = searcher.dataset.require(searcher.modality)
        yield [None], column[[row_of_key(searcher.dataset, asked.key, asked.shard)]]
    elif asked.embedding is not None:
        yield [None], _one_of(read_embeddings(asked.embedding), asked.row, asked.embedding)
    elif asked.image is not None:
        yield [None], embed_image(load_encoder(), asked.image)[None]
    else:
        found = [_not_empty(asked.text)] if asked.text is not None else _many(asked)
        if asked.queries is not None:
            listen(Progress(planned_rows=len(found)))
        if isinstance(found, np.ndarray):
            yield [None] * len(found), found
        else:
            encoder, cut = load_encoder(), CutCaptions()
            for texts, embedded in embed_texts(encoder, found):
                cut += CutCaptions.of(embedded.tokens_cut)
                yield list(texts), embedded.rows
            if cut.captions:
                note(cut.said(encoder.card.context_length, "text"))


def _many(asked: Query) -> Sequence[str] | np.ndarray:
    if isinstance(asked.queries, str):
        return read_queries(asked.queries, asked.column, asked.dialect)
    assert asked.queries is not None
    return asked.queries


def _not_empty(text: str) -> str:
    if not text.strip():
        raise InputError("the text to search for is empty", 'For example: embedpipe search emb "a red bicycle"')
    return text


def _one_of(found: np.ndarray, row: int | None, name: str) -> np.ndarray:
    if row is None and len(found) != 1:
        raise InputError(
            f"{name}: holds {len(found):,} rows", "Choose one with `row`, or search with all of them as `queries`"
        )
    if row is not None and row >= len(found):
        raise InputError(f"{name}: no row {row} of {len(found):,}", "Rows count from 0")
    one: np.ndarray = found[row or 0][None]
    return one
