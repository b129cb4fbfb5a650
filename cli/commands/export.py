"""`embedpipe export`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import embedpipe
from embedpipe.plural import plural

from ..options import CommandWithImages, debug_option, images_option, json_option, old_dry_run_option

if TYPE_CHECKING:
    from embedpipe.export import ExportConfig
    from embedpipe.load.images.source import Images

IMAGES = "images"


class _ExportCommand(CommandWithImages):
    """--images alone was what --to images is, before there was a --to in the same command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with the old spelling understood."""
        if "--images" in args and not any(arg == "--to" or arg.startswith("--to=") for arg in args):
            place = args.index("--images")
            args = [*args[:place], "--to", IMAGES, *args[place + 1 :]]
            click.echo(
                "note: --images is called --to images now, and --images says where the image shards are", err=True
            )
        return super().parse_args(ctx, args)


@click.command(cls=_ExportCommand)
@click.argument("emb")
@click.argument("out")
@click.option(
    "--to",
    help="The layout: hf, parquet, datacomp, lance, clip-retrieval or aligned (DALLE2-pytorch). Or images: the image "
    "shards of the rows.",
)
@click.option(
    "--keys", metavar="SUBSET", help="Only the rows named there: kept.parquet of dedup or filter, a list of keys …"
)
@click.option(
    "--embedding-dtype",
    type=click.Choice(["float16", "float32"]),
    help="Dtype to write. Default: as stored (datacomp: float16). Spark needs float32.",
)
@click.option("--text-tokens", is_flag=True, help="hf, parquet: also write the states of the captions' tokens.")
@click.option(
    "--splits", metavar="NAME=SHARE,…", help="hf: cut by a hash of the key, such as valid=0.05,test=0.05; rest: train."
)
@click.option(
    "--index-width",
    type=click.IntRange(1, 18),
    help="aligned: digits at the end of a key that are the sample's place in its tar. Default: those behind the tar's "
    "number.",
)
@click.option("--model-name", help="datacomp: the model in array names, l14 in l14_img. Default: from the model card.")
@images_option(", for --to images")
@old_dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    out: str,
    to: str | None,
    keys: str | None,
    embedding_dtype: str | None,
    text_tokens: bool,
    splits: str | None,
    index_width: int | None,
    model_name: str | None,
    images: Images,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write an embedding data set as other programs want it, or the image shards it was made from.

    \b
    hf              datasets.load_dataset, the Hugging Face hub
    parquet         Spark, DuckDB, pandas, embedding-reader
    datacomp        DataComp's filters and resharder
    lance           lance, lancedb
    clip-retrieval  clip-retrieval, autofaiss, embedding-reader
    aligned         DALLE2-pytorch's decoder loader: row = the sample's index in its tar, zeros where there is none
    images          image shards of the rows: images, captions and metadata; takes --keys and --images

    EMB is left as it is. OUT must be new, empty, or begun by the same command: run again, it goes on.

    \b
    embedpipe export emb hub --to hf --splits valid=0.05,test=0.05
    embedpipe export emb kept --to clip-retrieval --keys dedup/kept.parquet
    embedpipe export emb shards-kept --to images --keys dedup/kept.parquet
    embedpipe export emb shards-kept --to images --images /new/place/of/shards
    """
    from .. import display

    if not to:
        raise click.UsageError("Say what to write with --to: a layout, or images")
    config = embedpipe.ExportConfig(to, embedding_dtype, keys, text_tokens, splits, index_width, model_name)
    if to == IMAGES and config != embedpipe.ExportConfig(IMAGES, keys=keys):
        raise click.UsageError("--to images takes no options but --keys and --images")
    if images and to != IMAGES:
        raise click.UsageError("--images is for --to images: no other layout needs the input of `encode`")
    display.note_old_data(emb)
    if to == IMAGES:
        _run_images(emb, out, keys, images, dry_run, as_json)
    else:
        _run(emb, out, config, dry_run, as_json)


def _run(emb: str, out: str, config: ExportConfig, dry_run: bool, as_json: bool) -> None:
    from .. import display

    if dry_run:
        display.print_json({**display.plain(embedpipe.plan_export(emb, out, config)), "config": display.plain(config)})
        return
    with display.progress("export", "rows") as view:
        report = embedpipe.export(emb, out, config, view)
    if as_json:
        display.print_json(report)
        return
    already = f" ({report.already:,} of them were there already)" if report.already else ""
    click.echo(
        f"{out}: {plural(report.rows, 'row')} in {plural(report.parts, 'part')}{already}, "
        f"{plural(report.files, 'file')}, {report.bytes / 1e6:,.1f} MB, {display.seconds(report.seconds)}"
    )
    click.echo(f"opened by {report.opened_by}")


def _run_images(emb: str, out: str, keys: str | None, images: Images, dry_run: bool, as_json: bool) -> None:
    """Write the image shards of the rows of `emb` that `keys` names (None: all). images: where the input is now."""
    from .. import display

    if dry_run:
        plan = embedpipe.plan_images(emb, keys, out, images)
        display.print_json({"rows": plan.rows, "shards": plan.shards, "from": plan.source})
        return
    with display.progress("export", "rows") as view:
        report = embedpipe.export_images(emb, keys, out, images, view)
    if as_json:
        display.print_json(report)
        return
    already = f" ({report.already:,} of them were there already)" if report.already else ""
    size = f"{report.bytes / 1e6:,.1f} MB"
    click.echo(f"{out}: {plural(report.rows, 'sample')} in {plural(report.shards, 'shard')}{already}, {size}")
