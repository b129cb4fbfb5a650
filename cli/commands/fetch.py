"""`embedpipe fetch`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import embedpipe

from ..options import (
    address_option,
    debug_option,
    debugging,
    dialect_options,
    json_option,
    max_rejects_option,
    max_sample_seconds_option,
    old_dry_run_option,
    too_many_rejects,
)

if TYPE_CHECKING:
    from embedpipe.progress import RejectLimit


@click.command()
@click.argument("urls")
@click.argument("out")
@click.option(
    "--source",
    default="auto",
    show_default=True,
    help="What a folder holds: url tables (table) or images with captions beside them (images).",
)
@dialect_options
@click.option(
    "--infer-types",
    is_flag=True,
    help="Read columns of a csv or tsv as numbers or booleans where all their values are. Default: as text.",
)
@click.option("--url-col", default="url", show_default=True, help="The table's column with the urls.")
@click.option(
    "--local-root",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="The table holds local paths, relative to itself; read those that lead below DIR.",
)
@click.option(
    "--file-col", help="The column with the local paths. Default: file_name, file, path … whichever there is."
)
@click.option(
    "--caption-col",
    help="The column with the captions. Default: `caption`, if there is one. In a folder of images: the .json "
    "field with them, also where there is a .txt.",
)
@click.option(
    "--samples-per-shard", type=click.IntRange(1), default=10_000, show_default=True, help="Table rows per shard."
)
@click.option("--image-size", type=click.IntRange(1), default=256, show_default=True, help="Pixels, see --resize-mode.")
@click.option(
    "--resize-mode",
    default="keep_ratio",
    show_default=True,
    help="keep_ratio (the shorter side becomes --image-size), keep_ratio_largest, center_crop, border, or no.",
)
@click.option(
    "--only-if-bigger/--always-resize",
    default=True,
    show_default=True,
    help="Whether smaller images keep their size.",
)
@click.option("--min-image-size", type=click.IntRange(0), default=0, show_default=True, help="Reject smaller images.")
@click.option(
    "--max-aspect-ratio",
    type=click.FloatRange(0),
    default=0,
    help="Reject images whose longer side is more than this many times the shorter. Default: no limit.",
)
@click.option(
    "--background",
    metavar="COLOUR",
    default="white",
    show_default=True,
    help="Background of transparent images: a CSS colour (white, gray, '#ff8800').",
)
@click.option(
    "--orient/--no-orient",
    default=True,
    show_default=True,
    help="Turn images upright as their EXIF orientation says.",
)
@click.option(
    "--drop-duplicates", is_flag=True, help="Store the same image once: reject later copies, whatever their url."
)
@click.option(
    "--format", "image_format", default="jpg", show_default=True, help="What images are stored as: jpg, png or webp."
)
@click.option(
    "--quality", type=int, help="1 to 100 for jpg and webp (default 95); for png the compression, 0 to 9 (6)."
)
@click.option(
    "--resizer",
    default="auto",
    show_default=True,
    help="img2dataset, opencv, or auto: the first of them that is installed. Both give the same bytes.",
)
@click.option(
    "--rights",
    metavar="obey|record|off",
    help="Of the rights that image files state: reject images that opt out of training, and record the rest in columns "
    "(obey); only record; or read nothing. Default: obey, and for an OUT that exists what it was begun with.",
)
@click.option("--processes", type=click.IntRange(1), help="Download processes. Default: this machine's cores.")
@click.option(
    "--threads", type=click.IntRange(1), default=32, show_default=True, help="Concurrent downloads per process."
)
@click.option(
    "--per-host",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Concurrent downloads per host, over all processes.",
)
@click.option(
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds for each wait; an attempt may take three times that in total.",
)
@click.option(
    "--retries", type=click.IntRange(0), default=2, show_default=True, help="Retries after transient failures."
)
@click.option(
    "--user-agent", default="", help="Contact to add to the User-Agent header, e.g. '+https://example.org/crawl'."
)
@click.option(
    "--max-bytes", type=click.IntRange(1), default=50_000_000, show_default=True, help="Reject larger responses."
)
@max_sample_seconds_option
@click.option("--robots", is_flag=True, help="Obey each host's robots.txt and tdmrep.json.")
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False),
    help="PEM file of certificate authorities to trust besides the system's.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Fetch from this host although its address is not public. Repeatable.",
)
@click.option("--retry-failed", is_flag=True, help="Then retry failed rows, in new shards.")
@click.option("--only", metavar="CLASS,…", help="With --retry-failed: these error classes, e.g. timeout,5xx.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Remove the shards that an earlier run wrote to OUT, and begin again. Other files in OUT stay.",
)
@max_rejects_option()
@click.option(
    "--executor",
    default="auto",
    show_default=True,
    help="Where downloads run: auto or processes (this machine), or ray (a cluster whose machines share OUT).",
)
@address_option
@old_dry_run_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    urls: str,
    out: str,
    source: str,
    quoting: str,
    delimiter: str | None,
    encoding: str | None,
    infer_types: bool,
    url_col: str,
    local_root: str | None,
    file_col: str | None,
    caption_col: str | None,
    samples_per_shard: int,
    image_size: int,
    resize_mode: str,
    only_if_bigger: bool,
    min_image_size: int,
    max_aspect_ratio: float,
    orient: bool,
    background: str,
    drop_duplicates: bool,
    image_format: str,
    quality: int | None,
    resizer: str,
    rights: str | None,
    processes: int | None,
    threads: int,
    per_host: int,
    timeout: float,
    retries: int,
    user_agent: str,
    max_bytes: int,
    max_sample_seconds: float,
    robots: bool,
    ca_file: str | None,
    allow_hosts: tuple[str, ...],
    retry_failed: bool,
    only: str | None,
    overwrite: bool,
    max_rejects: RejectLimit | None,
    executor: str,
    address: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """A url table, or a folder of images → numbered image shards.

    URLS is a csv, tsv, txt, json, jsonl or parquet file (plain or .gz), a folder or a pattern of them; or a folder of
    images with captions (.txt) and fields (.json) beside them, which are packed without HTTP. Columns other
    than url and caption are passed through. Every row ends as one row of a shard's parquet: with its image in the tar
    beside it, or with the class of its error. The same command again fetches what is missing.

    \b
    embedpipe fetch laion.parquet shards --url-col URL --caption-col TEXT
    embedpipe fetch photos shards
    embedpipe fetch captions.csv shards --local-root photos
    embedpipe fetch 'urls/*.csv.gz' shards --resize-mode center_crop --image-size 224
    embedpipe fetch laion.parquet shards --url-col URL --caption-col TEXT --retry-failed --only timeout,5xx
    embedpipe fetch laion.parquet shards --executor ray --address head:6379 --processes 64
    """
    import os

    from embedpipe.fetch import log_file, rows_to_retry

    from .. import display
    from ..fetch_display import print_fetched, say_if_none_fetched
    from ..main import EXIT_REJECTS

    config = embedpipe.FetchConfig(
        source=source,
        quoting=quoting,
        delimiter=delimiter,
        encoding=encoding,
        infer_types=infer_types,
        url_col=url_col,
        local_root=local_root,
        file_col=file_col,
        caption_col=caption_col,
        samples_per_shard=samples_per_shard,
        image_size=image_size,
        resize_mode=resize_mode,
        only_if_bigger=only_if_bigger,
        min_image_size=min_image_size,
        max_aspect_ratio=max_aspect_ratio,
        orient=orient,
        background=background,
        drop_duplicates=drop_duplicates,
        image_format=image_format,
        quality=quality,
        resizer=resizer,
        rights=rights,
        allow_hosts=allow_hosts,
        processes=processes or os.cpu_count() or 1,
        threads=threads,
        per_host=per_host,
        timeout_s=timeout,
        retries=retries,
        user_agent=user_agent,
        retry_failed=retry_failed,
        only=tuple(filter(None, (only or "").split(","))),
        overwrite=overwrite,
        max_bytes=max_bytes,
        max_sample_seconds=max_sample_seconds,
        robots=robots,
        ca_file=ca_file,
        executor=executor,
        cluster=embedpipe.Cluster(address),
    )
    if dry_run:
        plan, to_fetch = embedpipe.plan_fetch(urls, out, config)
        columns = {"url": plan.layout.url, "caption": plan.layout.caption, **plan.layout.passed}
        again = rows_to_retry(plan, to_fetch, out, config)
        counts = {"rows": plan.rows, "shards": len(plan.shards), "to_fetch": to_fetch, "to_retry": again}
        display.print_json({**counts, "columns": columns, "config": config})
        return
    try:
        with display.progress("fetch", "urls") as view:
            report = embedpipe.fetch(urls, out, config, view)
    finally:
        if debugging():
            _show_log(log_file(out))
    if as_json:
        display.print_json(report)
    else:
        print_fetched(out, report)
    too_many = too_many_rejects(max_rejects, report.rows - report.succeeded, report.rows)
    if say_if_none_fetched(out, report) or too_many:
        ctx.exit(EXIT_REJECTS)


def _show_log(log_file: str | None) -> None:
    from embedpipe import files

    if log_file is not None and files.exists(log_file):
        click.echo(files.read_bytes(log_file).decode(errors="replace"), err=True, nl=False)
