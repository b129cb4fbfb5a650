"""`embedpipe takedown`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import embedpipe
from embedpipe.plural import plural

from ..options import debug_option, json_option, old_dry_run_option

if TYPE_CHECKING:
    from embedpipe.takedown import TakedownReport

_SHOWN = 20


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="SHARDS... EMB...")
@click.option("--urls", metavar="FILE", help="URLs to take down: one per line, or parquet with a column url.")
@click.option("--keys", metavar="FILE", help="Or: one key a line, or parquet with columns key and src_shard.")
@old_dry_run_option
@json_option
@debug_option
def command(paths: tuple[str, ...], urls: str | None, keys: str | None, dry_run: bool, as_json: bool) -> None:
    """Take rows out of image shards, embeddings, indexes and selections, for good.

    Give every output that was made from the images: image shards of `fetch`, the embedding data sets of `encode`,
    `merge` and `filter`, and folders of `dedup` and `filter`. Rows with the url or the image bytes of a named one go as
    well. Urls are compared whatever their spelling. OUT/takedowns keeps digests of what went, so that neither `fetch`
    nor `encode` brings it back. At the end every file is searched for what went. Interrupted, the same command goes on.

    \b
    embedpipe takedown shards emb --urls gone.txt --dry-run
    embedpipe takedown shards emb dedup --urls gone.txt
    embedpipe takedown s3://bucket/emb --keys gone.parquet
    """
    from .. import display
    from ..arrow import spare_pandas

    config = embedpipe.TakedownConfig(urls, keys)
    spare_pandas()
    if dry_run:
        display.print_json(embedpipe.plan_takedown(paths, config))
        return
    with display.progress("takedown", "rows") as view:
        report = embedpipe.takedown(paths, config, view)
    if as_json:
        display.print_json(report)
    else:
        _print(report)


def _print(report: TakedownReport) -> None:
    for output in report.outputs:
        shards = f" in {plural(output.shards, 'shard')}" if output.shards else ""
        kept = f"; digests of them in {output.record}" if output.record else ""
        click.echo(f"{output.path} ({output.holds}): {plural(output.rows, 'row')} taken out{shards}{kept}")
    if report.copies:
        click.echo(f"{report.copies:,} of these rows were not named: they have the url or the bytes of one that was")
    if report.files_searched:
        size = f"{report.bytes_searched / 1e6:,.1f} MB"
        click.echo(f"nothing of them is left in {plural(report.files_searched, 'file')}, {size}")
    if report.not_found:
        click.echo(f"warning: {len(report.not_found):,} of {report.asked:,} are in none of these outputs:", err=True)
        for entry in report.not_found[:_SHOWN]:
            click.echo(f"  {entry}", err=True)
        if len(report.not_found) > _SHOWN:
            click.echo(f"  and {len(report.not_found) - _SHOWN:,} more (--json names them all)", err=True)
