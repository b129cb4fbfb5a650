"""`embedpipe index`"""

from __future__ import annotations

import click

from .options import debug_option, json_option


@click.command()
@click.argument("emb")
@click.option(
    "--modality", type=click.Choice(["image", "text"]), default="image", show_default=True, help="Which side."
)
@json_option
@debug_option
def command(emb: str, modality: str, as_json: bool) -> None:
    """Build the search index of an embedding data set (faiss, exact).

    It is kept in EMB/index and rebuilt only when the data has changed.

    \b
    embedpipe index emb
    """
    from embedpipe.index import build_index

    from . import display

    with display.progress("index", "rows") as view:
        card = build_index(emb, modality, view)
    if as_json:
        display.print_json(card)
    else:
        click.echo(f"{emb}: {modality} index of {card.rows:,} rows × {card.dim}, {card.kind}, exact")
