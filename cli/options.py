"""Options that several commands share, as decorators, so that they mean the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from embedpipe.progress import RejectLimit

_Command = TypeVar("_Command", bound=Callable[..., Any])

_state = {"debug": False}


def debugging() -> bool:
    """Whether --debug was given: errors then show their traceback."""
    return _state["debug"]


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    _state["debug"] = _state["debug"] or value


def debug_option(command: _Command) -> _Command:
    """--debug"""
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
    )(command)


def json_option(command: _Command) -> _Command:
    """--json → `as_json`"""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(command)


def dry_run_option(command: _Command) -> _Command:
    """-n / --dry-run → `dry_run`"""
    return click.option(
        "-n", "--dry-run", is_flag=True, help="Print the plan and the resolved configuration, do nothing."
    )(command)


class Share(click.ParamType):
    """A limit: a count such as 500, or a share such as 5%. The value is a `RejectLimit`."""

    name = "count|percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse `500` or `5%`."""
        from embedpipe.progress import RejectLimit

        if isinstance(value, RejectLimit):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            self.fail(f"{value!r} is neither a count (500) nor a share (5%)", param, ctx)
        if not 0 <= number < float("inf"):
            self.fail(f"{value!r} is negative or endless", param, ctx)
        return RejectLimit(number, percent=text.endswith("%"))


def max_rejects_option(early: str = "") -> Callable[[_Command], _Command]:
    """--max-rejects → `max_rejects`, a `RejectLimit` or None. early: when a run ends before its end for it."""
    said = "Exit with 3 when more than this many (500) or this share (5%) did not pass."
    return click.option(
        "--max-rejects", type=Share(), metavar="N|P%", help=" ".join(filter(None, (said, early, "Default: no limit.")))
    )


def too_many_rejects(limit: RejectLimit | None, rejected: int, total: int) -> bool:
    """Whether more were rejected than --max-rejects allows; says so on stderr."""
    if limit is None or not limit(rejected, total):
        return False
    share = f" ({rejected / total:.1%})" if total else ""
    click.echo(f"too many rejects: {rejected:,} of {total:,}{share}, and --max-rejects allows {limit}", err=True)
    return True


def executor_options(command: _Command) -> _Command:
    """--executor → `executor`, --address → `address`"""
    command = click.option(
        "--address",
        metavar="HOST:PORT",
        help="The head of the Ray cluster. Default: RAY_ADDRESS, or one on this machine for the time of the run.",
    )(command)
    return click.option(
        "--executor",
        default="auto",
        show_default=True,
        help="inline, processes, ray, or auto: inline for one worker, processes for more.",
    )(command)


def verbose_option(what: str) -> Callable[[_Command], _Command]:
    """-v / --verbose → `verbose`. what: what it shows."""
    return click.option("-v", "--verbose", is_flag=True, help=what)


def config_options(command: _Command) -> _Command:
    """--config → `config_file`, --set → `settings`"""
    command = click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one value, e.g. optim.lr=1e-4. Repeatable."
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(dir_okay=False),
        help="A JSON file of values that replace the preset's.",
    )(command)


def split_options(command: _Command) -> _Command:
    """--split-column → `split_column`, --valid-share → `valid_share`"""
    command = click.option(
        "--valid-share",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.05,
        show_default=True,
        help="Share of rows held out by a hash of their key, where no --split-column says it.",
    )(command)
    return click.option(
        "--split-column", help="Metadata column that says `train` or `valid` for each row. Default: a hash of the key."
    )(command)


def parallel_option(command: _Command) -> _Command:
    """--parallel → `parallel`"""
    return click.option(
        "--parallel",
        type=click.Choice(["ddp", "fsdp"]),
        help="What each of several processes holds: ddp, all of the model (the default); fsdp, a share of it, where "
        "one device has no room to train it. Short for --set train.parallel=…",
    )(command)
