"""What `embedpipe fetch` says at its end: what came, what was rejected and why, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from embedpipe.fetch.outcome import ERROR_CLASSES, LIFTED_BY, MAY_PASS
from embedpipe.plural import plural

from . import display
from .fields import with_options

if TYPE_CHECKING:
    from embedpipe.fetch import FetchReport


def print_fetched(out: str, report: FetchReport) -> None:
    """The end of a run, on stdout."""
    if report.shards_redone:
        click.echo(f"warning: {plural(report.shards_redone, 'shard')} had lost files and came anew", err=True)
    shards = plural(report.shards, "shard")
    counts = f"{report.succeeded:,} of {plural(report.rows, 'image')} in {shards}, {report.bytes / 1e6:,.1f} MB"
    if report.shards_now:
        click.echo(f"{out}: {counts}; {report.shards_now:,} written in this run, {display.seconds(report.seconds)}")
    elif report.failed:
        click.echo(f"{out}: every row was tried before: {counts}, {sum(report.failed.values()):,} rejected")
    else:
        click.echo(f"{out}: nothing to do, finished: {counts}")
    if report.caption_column is None:
        click.echo("without captions: the table has no column 'caption' (choose one with --caption-col)")
    if report.failed:
        worst_first = sorted(report.failed.items(), key=lambda item: (-item[1], item[0]))
        rows = [(name, count, with_options(ERROR_CLASSES[name])) for name, count in worst_first]
        display.print_table(["rejected because", "rows", "which means"], rows)
    display.print_passed_over(report.listing, report.accounts)
    display.print_worst_hosts(report.hosts)
    for line in what_to_do(report.failed):
        click.echo(line)
    if report.report is not None:
        click.echo(f"report: {report.report}")


def what_to_do(failed: dict[str, int]) -> list[str]:
    """A line for each class of rejects that another run can change."""
    said = []
    passing = [name for name in failed if name in MAY_PASS]
    if passing:
        only = "" if len(passing) == len(failed) else f" --only {','.join(sorted(passing))}"
        rows = plural(sum(failed[name] for name in passing), "row")
        said.append(f"{rows} may succeed another time: run the same command with --retry-failed{only}")
    for name, field in LIFTED_BY.items():
        if name in failed:
            option, rows = with_options(f"`{field}`", "fetch"), plural(failed[name], "row")
            said.append(f"{rows} rejected as {name}: see {option}, and add --retry-failed --only {name}")
    return said


def say_if_none_fetched(out: str, report: FetchReport) -> bool:
    """Whether there are rows and no image of them at all; says so on stderr."""
    if not report.rows or report.succeeded:
        return False
    most = max(report.failed, key=lambda name: report.failed[name], default="")
    why = f": {report.failed[most]:,} rejected as {most}" if most else ""
    click.echo(f"error: {out}: none of {plural(report.rows, 'image')} was fetched{why}", err=True)
    return True
