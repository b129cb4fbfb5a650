"""`embedpipe search`"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

import embedpipe
from embedpipe.plural import plural

from ..options import (
    CommandWithImages,
    debug_option,
    dialect_options,
    images_option,
    json_option,
    model_options,
    said_of_model,
    trust_model_option,
)

if TYPE_CHECKING:
    from embedpipe.index import Hit
    from embedpipe.index.results import Answer
    from embedpipe.load.images.source import Images

_ROWS_AT_A_GLANCE = 100_000  # compared before a progress bar would show


@click.command(cls=CommandWithImages)
@click.argument("emb")
@click.argument("text", required=False)
@click.option("--image", type=click.Path(dir_okay=False), help="Search with a picture instead of a text.")
@click.option("--key", help="Search with the row of this key.")
@click.option("--shard", help="The source shard of --key, where several have one.")
@click.option("--embedding", type=click.Path(dir_okay=False), help="Search with a row of an .npy file.")
@click.option("--row", type=click.IntRange(0), help="Which row of --embedding; needed if it has several.")
@click.option(
    "--queries",
    type=click.Path(dir_okay=False),
    help="Many queries: texts, one per line (.txt) or a column (.csv, .tsv, .parquet), or embeddings (.npy, .parquet).",
)
@click.option(
    "--query-col",
    "--query-column",
    "column",
    help="The column of --queries. Default: query, text, caption or embedding, or the only one.",
)
@dialect_options
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Number of results.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Only results with at least this cosine.")
@click.option(
    "--modality",
    type=click.Choice(["image", "text"]),
    default="image",
    show_default=True,
    help="Which embeddings to search.",
)
@click.option("--exact", is_flag=True, help="Compare with every row; no index is needed.")
@click.option("--model", help="Where the model is now, if it has moved. Must be the same model.")
@click.option("--pretrained", help="Its pretrained tag or checkpoint, likewise.")
@model_options
@images_option(", for contact sheets")
@click.option(
    "--save",
    type=click.Path(dir_okay=False),
    help="Write a contact sheet (.png, .html) of the results, or the results (.parquet, .jsonl).",
)
@trust_model_option
@json_option
@debug_option
def command(
    emb: str,
    k: int,
    min_score: float | None,
    modality: str,
    exact: bool,
    model: str | None,
    pretrained: str | None,
    images: Images,
    save: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Find the images (or captions) nearest to a text, a picture, a row or an embedding.

    With --queries, --json prints a line for each query.

    \b
    embedpipe search emb "a red bicycle" --save out.png
    embedpipe search emb --image photo.jpg -k 20
    embedpipe search emb --key 000000012 --min-score 0.9
    embedpipe search emb --queries captions.txt --save results.parquet
    """
    from embedpipe.index.results import SUFFIXES, check_suffix, hit_as_json
    from embedpipe.progress import silent

    from .. import display
    from ..arrow import spare_pandas

    spare_pandas()

    said = said_of_model(asked)
    query = embedpipe.Query(**asked)
    many = query.queries is not None
    if save is not None:
        check_suffix(save, many)
    dataset = embedpipe.EmbeddingDataset(emb)
    searcher = embedpipe.Searcher(dataset, modality, exact)
    if searcher.card is None and not exact:
        click.echo(f"note: no {modality} index, so every row is compared; `embedpipe index {emb}` makes one", err=True)
    display.note_old_card(emb, dataset.card.dated, ": queries are embedded as version 0.1 embedded them")

    quick = not many and (searcher.card is not None or len(dataset) <= _ROWS_AT_A_GLANCE)
    shown = contextlib.nullcontext(silent) if quick else display.progress("search", "queries" if many else "rows")
    with shown as view:
        encoder: Any = {"model": model, "pretrained": pretrained, "options": said}
        if many:
            whole = save.lower().endswith(".jsonl") if save is not None else as_json
            found = embedpipe.search_many(
                searcher, query, k, min_score=min_score, **encoder, listen=view, all_metadata=whole
            )
            _show_many(found, save, as_json)
            return
        hits = embedpipe.search(
            searcher, query, k, min_score=min_score, **encoder, save=save, images=images, listen=view
        )
    if as_json:
        display.print_json([hit_as_json(hit) for hit in hits], rows=True)
        return
    if hits:
        _table(hits)
    elif min_score is not None:
        click.echo(f"no row has a cosine of {min_score:g} or more to it", err=True)
    if save is not None:
        click.echo(f"{'results' if save.lower().endswith(SUFFIXES) else 'contact sheet'}: {save}")


def _show_many(found: Iterator[Answer], save: str | None, as_json: bool) -> None:
    from embedpipe.index.results import as_line

    from .. import display

    if save is not None:
        hits = embedpipe.save_results(save, found)
        if as_json:
            display.print_json({"hits": hits, "saved": save})
        else:
            click.echo(f"results: {save}, {plural(hits, 'hit')}")
        return
    for number, (text, these) in enumerate(found):
        if as_json:
            display.print_line(display.as_json(display.plain(as_line(number, text, these))), rows=True)
        else:
            _table(these, text if text is not None else f"query {number}")


def _table(hits: Sequence[Hit], title: str = "") -> None:
    from .. import display

    rows = [(hit.rank, hit.score, hit.key, hit.caption, hit.metadata.get("url")) for hit in hits]
    display.print_table(["#", "score", "key", "caption", "url"], rows, title)
