"""`embedpipe filter`"""

from __future__ import annotations

from typing import Any

import click

import embedpipe
from embedpipe.plural import plural

from ..options import (
    CommandWithImages,
    debug_option,
    images_option,
    json_option,
    old_dry_run_option,
    refuse_missing,
    trust_option,
)


@click.command(cls=CommandWithImages)
@click.argument("emb")
@click.argument("out")
@click.option("--min-similarity", type=float, help="Keep rows whose image and caption have at least this cosine.")
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Keep rows whose metadata meet it: columns, caption_length, caption_words, aspect_ratio, score; SQL's "
    "operators. Repeatable.",
)
@click.option(
    "--top", type=float, metavar="SHARE", help="Keep this share of all rows, 0.3 for 30%, with the largest --by."
)
@click.option("--by", default="similarity", show_default=True, help="A column of numbers, or score, for --top.")
@click.option(
    "--keys",
    multiple=True,
    metavar="FILE",
    help="Keep these rows: kept.parquet or its folder, a .parquet with key (and src_shard), DataComp's .npy, or a text "
    "file of keys. Repeatable.",
)
@click.option(
    "--not-keys",
    multiple=True,
    metavar="FILE",
    help="Leave these rows out: dropped.parquet of dedup, or another such file, no folder. Repeatable.",
)
@click.option("--allow-missing", is_flag=True, help="Accept keys that EMB lacks, and count them.")
@click.option("--head", metavar="FILE", help="Score the embeddings with a linear head or MLP: .pth or .safetensors.")
@click.option(
    "--head-model",
    metavar="MODEL/PRETRAINED",
    help="Which model the head was made for, or the first digits of its weights' sha256, if nothing beside it says so.",
)
@trust_option("Score embeddings that version 0.1 wrote")
@click.option("--min-score", type=float, help="Keep rows with at least this score.")
@click.option(
    "--modality", type=click.Choice(["image", "text"]), default="image", show_default=True, help="Side to score."
)
@click.option("--materialise", is_flag=True, help="Also write the kept rows as an embedding data set, into OUT.")
@click.option(
    "--examples", type=click.IntRange(0), default=12, show_default=True, help="Rows on each side of a cut to show."
)
@images_option(", for the pictures in examples.html")
@click.option("--threads", type=click.IntRange(1), help="Default: the cores.")
@old_dry_run_option
@json_option
@debug_option
def command(emb: str, out: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Keep the rows of an embedding data set that meet all conditions.

    EMB is left as it is. OUT gets kept.parquet (which rows), subset.npy (the same for DataComp, where there are uids),
    examples.html with pictures of rows around each cut, and report.json with what each condition alone would drop.

    \b
    embedpipe filter emb out --min-similarity 0.28 --where "width >= 256 and caption_length > 5"
    embedpipe filter emb out --top 0.3 --by similarity --not-keys dedup/dropped.parquet --materialise
    embedpipe filter emb out --head sac+logos+ava1-l14-linearMSE.pth --min-score 5
    """
    refuse_missing(emb)

    from .. import display
    from ..arrow import spare_pandas

    spare_pandas()

    config = embedpipe.FilterConfig(**options)
    display.note_old_data(emb)
    with display.progress("filter", "rows") as view:
        report = embedpipe.plan_filter(emb, config, view, out) if dry_run else embedpipe.filter(emb, out, config, view)
    if dry_run:
        display.print_json({"would": display.plain(report), "config": display.plain(config)})
    elif as_json:
        display.print_json(report)
    else:
        _print(out, report)


def _print(out: str, report: Any) -> None:
    from .. import display

    click.echo(f"{out}: {report.kept:,} of {plural(report.rows, 'row')} kept")
    rows = [(entry.condition, entry.drops, entry.only, entry.unknown) for entry in report.conditions]
    display.print_table(["condition", "would drop", "only it drops", "not known"], rows)
    for entry in report.conditions:
        if entry.missing:
            click.echo(f"warning: {entry.missing:,} keys of the condition {entry.condition!r} are not in it", err=True)
        if report.rows and entry.unknown == report.rows:
            click.echo(f"warning: {entry.condition!r} is known of no row, so none meets it", err=True)
    click.echo(f"look at {out}/examples.html")
