"""`embedpipe dedup`"""

from __future__ import annotations

from typing import Any

import click

from .options import debug_option, dry_run_option, json_option


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option("--threshold", type=float, default=0.95, show_default=True, help="Cosine from which on two rows are one.")
@click.option(
    "--keep",
    default="first",
    show_default=True,
    help="Which of near-duplicates stays: first (in the data set), similarity (of image and caption), closest to or "
    "farthest from the centre of its cluster.",
)
@click.option(
    "--modality",
    type=click.Choice(["image", "text"]),
    default="image",
    show_default=True,
    help="Which side to compare.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the clustering.")
@click.option("--pairs", type=click.IntRange(0), default=60, show_default=True, help="Pairs to show in pairs.html.")
@click.option("--images", help="Where the image shards are now, for the pictures in pairs.html.")
@click.option("--materialise", is_flag=True, help="Also write the kept rows as an embedding data set, into OUT.")
@click.option("--threads", type=click.IntRange(1), help="Default: the cores. The result does not depend on it.")
@dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    out: str,
    threshold: float,
    keep: str,
    modality: str,
    seed: int,
    pairs: int,
    images: str | None,
    materialise: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the rows of an embedding data set that repeat others (SemDeDup).

    EMB is left as it is. OUT gets kept.parquet and dropped.parquet (which row, and which one it repeats), pairs.html
    with pictures of pairs around the threshold, and report.json with what each other threshold would keep. Rows of the
    same image file are duplicates at any threshold. Run again with another threshold, it compares nothing anew.

    \b
    embedpipe dedup emb dedup
    embedpipe dedup emb dedup --threshold 0.97 --keep similarity --materialise
    """
    from embedpipe.curate import DedupConfig, dedup, plan_dedup

    from . import display

    config = DedupConfig(threshold, keep, modality, seed, pairs, images, materialise, threads)
    if dry_run:
        display.print_json({"plan": display.plain(plan_dedup(emb, config)), "config": display.plain(config)})
        return
    with display.progress("dedup", "rows", "steps") as view:
        report = dedup(emb, out, config, view)
    if as_json:
        display.print_json(report)
    else:
        _print(out, report)


def _print(out: str, report: Any) -> None:
    from . import display

    click.echo(
        f"{out}: {report.kept:,} of {report.rows:,} rows kept, {report.dropped:,} dropped at a cosine of "
        f"{report.threshold:g} ({report.same_content:,} of them the same file)"
    )
    rows = [(name, kept, report.rows - kept) for name, kept in report.sweep.items()]
    display.table(["threshold", "kept", "dropped"], rows)
    click.echo(f"look at {out}/pairs.html before you choose")
