"""`embedpipe verify`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import embedpipe
from embedpipe.plural import plural
from embedpipe.visible import visible

from ..options import debug_option, executor_options, json_option

if TYPE_CHECKING:
    from embedpipe.verify import VerifyReport

_MOST_SHOWN = 20


@click.command()
@click.argument("path")
@click.option("--deep", is_flag=True, help="Read everything: checksums, norms, finite numbers, row against row.")
@click.option(
    "--repair",
    is_flag=True,
    help="Drop the bad shards, so that the command that made them makes them again. Their files are removed by that.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that check shards.")
@executor_options
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    path: str,
    deep: bool,
    repair: bool,
    workers: int,
    executor: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Check that an output is whole, and say what is not.

    PATH is a folder written by `fetch`, `encode`, `merge`, `sample-prior`, or `filter` and `dedup` with --materialise;
    or a training run. Without options, manifests, counts and file sizes are checked, in a moment. Shards that are
    planned but not yet made are no fault. The exit code is 0 if all is whole and 1 if anything is bad, even if --repair
    dropped it.

    \b
    embedpipe verify emb
    embedpipe verify emb --deep --workers 8
    embedpipe verify emb --deep --repair
    embedpipe verify s3://bucket/emb --deep --workers 64 --executor ray --address head:6379
    """
    from .. import display
    from ..main import EXIT_ERROR

    with display.progress("verify", "rows") as view:
        report = embedpipe.verify(
            path, embedpipe.VerifyConfig(deep, repair, workers, executor, embedpipe.Cluster(address)), view
        )
    if as_json:
        display.print_json({**display.plain(report), "whole": report.whole})
    else:
        _print(report)
    if not report.whole:
        ctx.exit(EXIT_ERROR)


def _print(report: VerifyReport) -> None:
    from embedpipe.clip_model.encoder_card import BEFORE_ACTIVATION
    from embedpipe.verify import KINDS
    from embedpipe.verify.job import RUN_FORMAT

    if report.format == RUN_FORMAT:
        click.echo(f"{report.path}: training run, {plural(report.committed, 'checkpoint')}")
    else:
        click.echo(
            f"{report.path}: {KINDS[report.format]}, {report.committed:,} of {plural(report.planned, 'shard')}, "
            f"{plural(report.rows, 'row')}, {report.rejected:,} rejected, {report.bytes / 1e6:,.1f} MB"
        )
    if report.dated:
        click.echo(BEFORE_ACTIVATION)
    if report.missing:
        click.echo(f"{plural(report.missing, 'planned shard')} not made yet; the command that began them goes on")
    if report.leftovers:
        shown = visible(", ".join(report.leftovers[:3])) + ", …" * (len(report.leftovers) > 3)
        some = plural(len(report.leftovers), "file")
        click.echo(f"{some} of no shard ({shown}); the next run removes what is its own")
    for fault in report.faults[:_MOST_SHOWN]:
        where = f"bad shard {fault.number} ({fault.name or 'unknown'}): " if fault.number is not None else ""
        click.echo(visible(f"{where}{fault.what}"))
    if len(report.faults) > _MOST_SHOWN:
        click.echo(f"… and {len(report.faults) - _MOST_SHOWN:,} more; --json has them all")
    names = {fault.number: fault.name or "unknown" for fault in report.faults}
    for number in report.dropped[:_MOST_SHOWN]:
        click.echo(visible(f"dropped shard {number} ({names[number]})"))
    if report.dropped:
        them = "it" if len(report.dropped) == 1 else f"all {len(report.dropped)}"
        click.echo(f"run the command that made {report.path} to make {them} again")
    if report.whole:
        click.echo("whole" if report.deep else "whole, by counts and sizes; --deep reads everything")
    else:
        remedy = "" if report.dropped else "; --repair drops bad shards, so that they are made again"
        click.echo(f"{plural(len(report.faults), 'fault')}{remedy}")
