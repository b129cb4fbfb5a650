"""`embedpipe search`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .options import debug_option, json_option

if TYPE_CHECKING:
    from embedpipe.index import Hit
    from embedpipe.load import EmbeddingDataset


@click.command()
@click.argument("emb")
@click.argument("text", required=False)
@click.option("--image", "image_file", type=click.Path(dir_okay=False), help="Search with a picture instead of a text.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many results.")
@click.option("--modality", type=click.Choice(["image", "text"]), default="image", show_default=True, help="Search in.")
@click.option("--model", help="Where the model is now, if not where it was. Must be the same model.")
@click.option("--pretrained", help="Its pretrained tag or checkpoint, likewise.")
@click.option("--images", "data", help="Where the image shards are now, for --save.")
@click.option("--save", type=click.Path(dir_okay=False), help="Write a contact sheet (PNG) of the results.")
@json_option
@debug_option
def command(
    emb: str,
    text: str | None,
    image_file: str | None,
    k: int,
    modality: str,
    model: str | None,
    pretrained: str | None,
    data: str | None,
    save: str | None,
    as_json: bool,
) -> None:
    """Find the images (or captions) nearest to a text or a picture.

    \b
    embedpipe search emb "a red bicycle" --save out.png
    embedpipe search emb --image photo.jpg -k 20
    """
    if (text is None) == (image_file is None):
        raise click.UsageError('Give either a text or --image FILE, e.g. embedpipe search emb "a red bicycle"')
    from embedpipe.errors import InputError
    from embedpipe.index import embed_image, query_encoder, search
    from embedpipe.load import EmbeddingDataset

    from . import display

    if text is not None and not text.strip():
        raise InputError("the text to search for is empty", 'For example: embedpipe search emb "a red bicycle"')
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    encoder = query_encoder(dataset, model, pretrained)
    query = encoder.texts([text])[0] if text is not None else embed_image(encoder, str(image_file))
    hits = search(dataset, query, k, modality)
    if save is not None:
        _save_sheet(dataset, hits, text or f"like {image_file}", save, data)
    if as_json:
        display.print_json(hits)
    else:
        rows = [(hit.rank, hit.score, hit.key, hit.caption, hit.metadata.get("url")) for hit in hits]
        display.table(["#", "score", "key", "caption", "url"], rows)
        if save is not None:
            click.echo(f"contact sheet: {save}")


def _save_sheet(dataset: EmbeddingDataset, hits: Sequence[Hit], title: str, save: str, data: str | None) -> None:
    from embedpipe import files
    from embedpipe.images.sheet import SheetCell, contact_sheet
    from embedpipe.load.stored import stored_pictures

    pictures = stored_pictures(dataset, [(hit.src_shard, hit.key) for hit in hits], data)
    if len(pictures) < len(hits):
        place = data or dataset.run.source
        click.echo(f"warning: {len(hits) - len(pictures)} pictures are not in {place}; see --images", err=True)
    cells = [SheetCell(pictures.get((hit.src_shard, hit.key)), f"{hit.score:.3f} {hit.caption or ''}") for hit in hits]
    files.write_bytes(save, contact_sheet(cells, title))
