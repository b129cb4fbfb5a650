"""`embedpipe dedup`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import embedpipe
from embedpipe.plural import plural

from ..fields import with_options
from ..options import (
    CommandWithImages,
    debug_option,
    executor_options,
    images_option,
    json_option,
    old_dry_run_option,
    refuse_missing,
)

if TYPE_CHECKING:
    from embedpipe.load.images.source import Images

DIFFERENCE = 0.025  # embedpipe.curate.DedupConfig has the same, and is not imported for --help


@click.command(cls=CommandWithImages)
@click.argument("emb")
@click.argument("out")
@click.option(
    "--threshold",
    type=float,
    help="Cosine from which on two rows are duplicates (default 0.95), or, where images are compared, from which on "
    "theirs are (default 0.75).",
)
@click.option(
    "--confirm",
    type=click.Choice(["auto", "none", "pictures"]),
    default="auto",
    show_default=True,
    help="Compare the pictures of near rows: auto where the image shards are on this machine or at --images.",
)
@click.option(
    "--difference",
    type=float,
    default=DIFFERENCE,
    show_default=True,
    help="Largest image difference between duplicates, from 0 to 1.",
)
@click.option(
    "--keep",
    default="first",
    show_default=True,
    help="Which of several duplicates to keep: first (in the data set), similarity (of image and caption), closest to "
    "or farthest from the centre of its cluster.",
)
@click.option(
    "--modality",
    type=click.Choice(["image", "text"]),
    default="image",
    show_default=True,
    help="Which side to compare.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the clustering.")
@click.option(
    "--examples",
    "--pairs",
    "pairs",
    type=click.IntRange(0),
    default=60,
    show_default=True,
    help="Pairs to show in pairs.html.",
)
@images_option()
@click.option("--materialise", is_flag=True, help="Also write the kept rows as an embedding data set, into OUT.")
@click.option("--threads", type=click.IntRange(1), help="Default: the cores. The result does not depend on it.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Workers that assign rows to clusters, each with --threads; the rest is this process's.",
)
@executor_options
@old_dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    out: str,
    threshold: float | None,
    confirm: str,
    difference: float,
    keep: str,
    modality: str,
    seed: int,
    pairs: int,
    images: Images,
    materialise: bool,
    threads: int | None,
    workers: int,
    executor: str,
    address: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the rows of an embedding data set that repeat others (SemDeDup).

    EMB is left as it is. OUT gets kept.parquet and dropped.parquet (which row, and which one it repeats), pairs.html
    with pictures of pairs around the cut, and report.json with what other values would keep. Rows of the same image
    file are duplicates in any case. Of rows that are near each other the pictures are compared, where the image shards
    can be read: embeddings alone cannot tell a copy from a similar image. Another run with another --threshold or
    --difference compares nothing again.

    \b
    embedpipe dedup emb dedup
    embedpipe dedup emb dedup --images s3://bucket/shards --keep similarity --materialise
    embedpipe dedup merged dedup --images /new/shards-2023 --images /new/shards-2024
    embedpipe dedup emb dedup --confirm none --threshold 0.97
    embedpipe dedup emb dedup --executor ray --address head:6379 --workers 16
    """
    if executor != "ray":
        refuse_missing(emb)

    from .. import display
    from ..arrow import spare_pandas

    spare_pandas()

    config = embedpipe.DedupConfig(
        threshold,
        keep,
        modality,
        seed,
        pairs,
        images,
        materialise,
        threads,
        confirm,
        difference,
        executor=executor,
        workers=workers,
        cluster=embedpipe.Cluster(address),
    )
    display.note_old_data(emb)
    if dry_run:
        display.print_json(
            {"plan": display.plain(embedpipe.plan_dedup(emb, config, out)), "config": display.plain(config)}
        )
        return
    with display.progress("dedup", "rows", "steps") as view:
        report = embedpipe.dedup(emb, out, config, view)
    compared = "images compared" if report.confirmed_by == "pictures" else "images not compared"
    click.echo(with_options(f"{compared}: {report.why}"), err=True)
    if as_json:
        display.print_json(report)
    else:
        _print(out, report, difference)


def _print(out: str, report: Any, difference: float) -> None:
    from .. import display

    pictures = report.confirmed_by == "pictures"
    click.echo(
        f"{out}: {report.kept:,} of {plural(report.rows, 'row')} kept, {report.dropped:,} dropped at a cosine of "
        f"{report.threshold:g}"
        + (f" and a picture difference of {difference:g}" if pictures else "")
        + f" ({report.same_content:,} of them the same file)"
    )
    if pictures:
        missing = report.not_compared > 0
        click.echo(
            f"{plural(report.pairs_compared - report.not_compared, 'pair')} of pictures compared"
            + f"; {report.not_compared:,} pairs had a missing picture and were judged by cosine" * missing
        )
    for name, sweep in (("threshold", report.sweep), ("difference", report.difference_sweep)):
        if sweep:
            display.print_table(
                [name, "kept", "dropped"], [(at, kept, report.rows - kept) for at, kept in sweep.items()]
            )
    click.echo(f"look at {out}/pairs.html before you choose")
