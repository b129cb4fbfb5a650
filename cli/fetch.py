"""`embedpipe fetch`"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .options import debug_option, debugging, dry_run_option, json_option, max_rejects_option


@click.command()
@click.argument("urls")
@click.argument("out")
@click.option("--url-col", default="url", show_default=True, help="The table's column with the urls.")
@click.option("--caption-col", help="The column with the captions. Default: `caption`, if there is one.")
@click.option(
    "--samples-per-shard", type=click.IntRange(1), default=10_000, show_default=True, help="Rows of the table a shard."
)
@click.option("--image-size", type=click.IntRange(1), default=256, show_default=True, help="Pixels, see --resize-mode.")
@click.option(
    "--resize-mode",
    default="keep_ratio",
    show_default=True,
    help="keep_ratio (the shorter side becomes --image-size), center_crop, border, or no.",
)
@click.option(
    "--only-if-bigger/--always-resize",
    default=True,
    show_default=True,
    help="Whether smaller images keep their size.",
)
@click.option("--min-image-size", type=click.IntRange(0), default=0, show_default=True, help="Smaller ones are failed.")
@click.option("--processes", type=click.IntRange(1), help="Download processes. Default: the cores.")
@click.option("--threads", type=click.IntRange(1), default=32, show_default=True, help="Downloads at once a process.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds to wait; thrice that in all.")
@click.option("--retries", type=click.IntRange(0), default=2, show_default=True, help="For failures that may pass.")
@click.option("--user-agent", default="", help="How to reach you, e.g. '+https://example.org/crawl'; sent along.")
@click.option(
    "--allow-host", "allow_hosts", multiple=True, metavar="HOST", help="Fetch from this private host. Repeatable."
)
@max_rejects_option()
@dry_run_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    urls: str,
    out: str,
    url_col: str,
    caption_col: str | None,
    samples_per_shard: int,
    image_size: int,
    resize_mode: str,
    only_if_bigger: bool,
    min_image_size: int,
    processes: int | None,
    threads: int,
    timeout: float,
    retries: int,
    user_agent: str,
    allow_hosts: tuple[str, ...],
    max_rejects: Callable[[int, int], bool] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """A url table → numbered image shards.

    URLS is a csv, tsv, txt, json, jsonl or parquet file (plain or .gz), a folder or a pattern of them. Columns other
    than url and caption are passed through. Every row ends as one row of a shard's parquet: with its image in the tar
    beside it, or with the class of its error. The same command again fetches what is missing.

    \b
    embedpipe fetch laion.parquet shards --url-col URL --caption-col TEXT
    embedpipe fetch 'urls/*.csv.gz' shards --resize-mode center_crop --image-size 224
    """
    import os

    from embedpipe import fetch as room

    from . import display
    from .main import EXIT_REJECTS

    config = room.FetchConfig(
        url_col=url_col,
        caption_col=caption_col,
        samples_per_shard=samples_per_shard,
        image_size=image_size,
        resize_mode=resize_mode,
        only_if_bigger=only_if_bigger,
        min_image_size=min_image_size,
        allow_hosts=allow_hosts,
        processes=processes or os.cpu_count() or 1,
        threads=threads,
        timeout_s=timeout,
        retries=retries,
        user_agent=user_agent,
    )
    if dry_run:
        _print_plan(room.make_plan(urls, out, config), out, config)
        return
    try:
        with display.progress("fetch", "urls") as view:
            report = room.fetch(urls, out, config, view)
    finally:
        if debugging():
            _show_log(room.log_file(out))
    if as_json:
        display.print_json(report)
    else:
        _print(out, report, room.ERROR_CLASSES)
    if max_rejects is not None and max_rejects(report.rows - report.succeeded, report.rows):
        ctx.exit(EXIT_REJECTS)


def _print_plan(plan: Any, out: str, config: Any) -> None:
    from embedpipe.fetch import remaining

    from . import display

    columns = {"url": plan.layout.url, "caption": plan.layout.caption, **plan.layout.passed}
    display.print_json(
        {
            "rows": plan.rows,
            "shards": len(plan.shards),
            "to_fetch": [shard.number for shard in remaining(plan, out)],
            "columns": columns,
            "config": display.plain(config),
        }
    )


def _show_log(log_file: str | None) -> None:
    from embedpipe import files

    if log_file is not None and files.exists(log_file):
        click.echo(files.read_bytes(log_file).decode(errors="replace"), err=True, nl=False)


def _print(out: str, report: Any, meanings: dict[str, str]) -> None:
    from . import display

    if report.shards_redone:
        click.echo(f"warning: {report.shards_redone} shards had lost files and were fetched again", err=True)
    counts = f"{report.succeeded:,} of {report.rows:,} images in {report.shards} shards, {report.bytes / 1e6:,.1f} MB"
    if not report.shards_now:
        click.echo(f"{out}: nothing to do, finished: {counts}")
    else:
        click.echo(f"{out}: {counts}; {report.shards_now} shards now, {display.seconds(report.seconds)}")
    if report.caption_column is None:
        click.echo("without captions: the table has no column `caption` (choose one with --caption-col)")
    if report.failed:
        worst_first = sorted(report.failed.items(), key=lambda item: (-item[1], item[0]))
        display.table(["failed", "urls", "because"], [(name, count, meanings[name]) for name, count in worst_first])
