"""`embedpipe serve`"""

from __future__ import annotations

from typing import Any

import click

import embedpipe

from ..options import debug_option, images_option, model_options, refuse_missing, said_of_model, trust_model_option


@click.command()
@click.argument("emb", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: any free one."
)
@click.option(
    "--token",
    envvar="EMBEDPIPE_TOKEN",
    help="A secret that every request must carry, of 16 characters or more. Better given in the variable "
    "EMBEDPIPE_TOKEN than on the command line, which other users of the machine can read.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="URL",
    help="An address, such as http://gpu7:8000, under which browsers may use the server. Repeatable. A --host that is "
    "not loopback needs one, and --token.",
)
@click.option("--no-model", is_flag=True, help="Load no model: find by key, row and embedding only.")
@click.option("--model", help="Where the model is now, if it has moved. Must be the same model.")
@click.option("--pretrained", help="Its pretrained tag or checkpoint, likewise.")
@model_options
@images_option(", for the pictures")
@click.option(
    "--selections",
    default="selections",
    show_default=True,
    type=click.Path(file_okay=False),
    help="Folder that selections are saved in.",
)
@click.option("--exact", is_flag=True, help="Compare with every row; use no index.")
@click.option(
    "--thumbnail-mb", type=click.IntRange(1), default=128, show_default=True, help="MiB of thumbnails kept in memory."
)
@trust_model_option
@debug_option
def command(emb: tuple[str, ...], **options: Any) -> None:
    """A page to look at embedding data sets, search them and choose rows; an API behind it.

    Opens on this machine only, works offline, and reads nothing but the data sets, their image shards and the model.
    Selections are saved as `filter` saves them: give them to its --keys. Answers clip-retrieval's clients, too. Ctrl-C
    ends it.

    \b
    embedpipe serve emb
    embedpipe serve emb other-emb --port 8001 --no-model
    EMBEDPIPE_TOKEN=… embedpipe serve emb --host 0.0.0.0 --allow-origin http://gpu7:8000
    """
    refuse_missing(*emb)
    from .. import display

    said = said_of_model(options)
    config = embedpipe.ServeConfig(**options, options=said)
    for path in emb:
        display.note_old_data(path)

    def ready(address: str) -> None:
        click.echo(f"serving at {address}  (Ctrl-C ends it)")
        if config.token is not None:
            click.echo("open it once with the token as its parameter `token`; a cookie keeps it from then on")

    embedpipe.serve(emb, config, ready)
    click.echo("stopped")
