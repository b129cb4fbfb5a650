"""`embedpipe export`"""

from __future__ import annotations

import click

from .options import debug_option, dry_run_option, json_option


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option("--images", is_flag=True, help="Write the image shards of the rows: images, captions and metadata.")
@click.option(
    "--keys", metavar="SUBSET", help="Only the rows named there: kept.parquet of dedup or filter, or its folder."
)
@click.option("--data", help="With --images: where the input of `encode` is now, if not where it was.")
@dry_run_option
@json_option
@debug_option
def command(emb: str, out: str, images: bool, keys: str | None, data: str | None, dry_run: bool, as_json: bool) -> None:
    """Write the rows of an embedding data set for other uses. EMB is left as it is; run again, it goes on.

    \b
    embedpipe export emb shards-kept --images --keys dedup/kept.parquet
    """
    from . import export_images

    if not images:
        raise click.UsageError("Say what to write: --images")
    export_images.run(emb, out, keys, data, dry_run, as_json)
