"""`embedpipe verify`"""

from __future__ import annotations

import click

from .options import debug_option, json_option


@click.command()
@click.argument("path")
@json_option
@debug_option
@click.pass_context
def command(ctx: click.Context, path: str, as_json: bool) -> None:
    """Check every checksum, count and fingerprint of an output of `fetch` or `encode`.

    Says which shard is bad and exits with 1 if any is. Shards that are planned and not made yet are no fault.

    \b
    embedpipe verify emb
    """
    from embedpipe.verify import KINDS, verify

    from . import display
    from .main import EXIT_ERROR

    with display.progress("verify", "rows") as view:
        report = verify(path, view)
    if as_json:
        display.print_json({**display.plain(report), "whole": report.whole})
    else:
        kind = KINDS.get(report.format, report.format)
        click.echo(
            f"{path}: {kind}, {report.committed:,} of {report.planned:,} shards, {report.rows:,} rows, "
            f"{report.rejected:,} rejected, {report.bytes / 1e6:,.1f} MB"
        )
        if report.missing:
            click.echo(
                f"{report.missing} planned shards are not made yet; the command that began them goes on with them"
            )
        for fault in report.faults:
            click.echo(f"bad shard {fault.number} ({fault.name or 'manifest'}): {fault.what}")
        click.echo("whole" if report.whole else f"{len(report.faults)} faults")
    if not report.whole:
        ctx.exit(EXIT_ERROR)
