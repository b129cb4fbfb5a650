"""`embedpipe merge`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import embedpipe
from embedpipe.plural import plural

from ..fields import with_options
from ..options import debug_option, json_option, old_dry_run_option, trust_option, verbose_option

if TYPE_CHECKING:
    from embedpipe.merge import MergeReport


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="EMB EMB... OUT")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that copy shards.")
@trust_option("Merge data sets that version 0.1 wrote with newer ones")
@verbose_option("A line for each shard that was taken over.")
@old_dry_run_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    workers: int,
    trust_old_card: bool,
    verbose: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Embedding data sets of one encoder → a new one, OUT, with the shards of all of them.

    Each EMB stays as it is. Data sets of another encoder, format or columns are refused, with what
    differs. The same command again takes over what is missing; a data set that has grown, or another one, is appended.

    \b
    embedpipe merge emb-2023 emb-2024 emb
    """
    from .. import display
    from ..main import EXIT_REJECTS

    *sources, out = paths
    if len(sources) < 2:
        raise click.UsageError("Give at least two data sets, then the output folder")
    config = embedpipe.MergeConfig(workers, trust_old_card=trust_old_card)
    display.note_old_data(*sources)
    if dry_run:
        plan = embedpipe.plan_merge(sources, out, trust_old_card)
        names = {task.number: {"shard": task.name, "from": task.payload.path} for task in plan.tasks}
        facts = {"prefixes": plan.prefixes, "columns": plan.columns, "unfinished": plan.unfinished}
        display.print_json({"shards": names, **facts, "config": config})
        return
    with display.progress("merge", "rows", verbose=verbose) as view:
        report = embedpipe.merge(sources, out, config, view)
    if as_json:
        display.print_json(report)
    else:
        _print(out, report)
    if report.failed_tasks:
        ctx.exit(EXIT_REJECTS)


def _print(out: str, report: MergeReport) -> None:
    from .. import display

    for path in report.unfinished:
        click.echo(f"warning: {path} is not finished; merge again when it is, and the rest is appended", err=True)
    for name in report.redone:
        click.echo(f"warning: the files of {name} were missing or cut short; it was taken over again", err=True)
    for given_up in report.failed_tasks:
        click.echo(with_options(f"warning: {given_up.task.name} was set aside: {given_up.reason}"), err=True)
    if report.already == report.planned:
        shards = plural(report.planned, "shard")
        click.echo(f"{out}: nothing to do, finished: {plural(report.rows, 'row')} in {shards}")
        return
    for path, prefix in report.prefixes.items():
        if prefix:
            click.echo(f"the shards of {path} are called {prefix}… in src_shard, since names were there twice")
    alike: dict[str, list[str]] = {}
    for name, what in report.columns.items():
        alike.setdefault(what, []).append(name)
    for what, names in alike.items():
        click.echo(f"column{'s' * (len(names) > 1)} {', '.join(names)}: {what}")
    already = f" ({report.already} were there already)" if report.already else ""
    click.echo(
        f"{out}: {plural(report.rows, 'row')} and {plural(report.rejected, 'reject')} in "
        f"{plural(report.planned, 'shard')}{already}, "
        f"{display.seconds(report.seconds)}"
    )
