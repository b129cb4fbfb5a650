"""Options that several commands share, as decorators, so that they mean the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embedpipe.clip_model.open_clip_tables import INTERPOLATIONS, RESIZE_MODES

if TYPE_CHECKING:
    from embedpipe.clip_model.spec import ModelOptions
    from embedpipe.progress import RejectLimit

_Command = TypeVar("_Command", bound=Callable[..., Any])

_state = {"debug": False}
_SHORT_DRY_RUN = "embedpipe.short_dry_run"


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
    """--dry-run → `dry_run`"""
    return click.option(
        "--dry-run",
        is_flag=True,
        callback=lambda ctx, param, value: value or ctx.meta.get(_SHORT_DRY_RUN, False),
        help="Print the plan and the resolved configuration; write nothing.",
    )(command)


def old_dry_run_option(command: _Command) -> _Command:
    """`dry_run_option`, and -n, which was short for it: still understood, but for `generate`, where it is a number."""
    return click.option(
        "-n", "short_dry_run", is_flag=True, hidden=True, expose_value=False, callback=_set_short_dry_run
    )(dry_run_option(command))


def _set_short_dry_run(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:  # options that were given are processed first
        click.echo("note: -n is called --dry-run now", err=True)
        ctx.meta[_SHORT_DRY_RUN] = True


def dialect_options(command: _Command) -> _Command:
    """--quoting, --delimiter, --encoding → `quoting`, `delimiter`, `encoding` of a text table"""
    for option in (
        click.option(
            "--encoding", help="Of a text file, e.g. cp1252. Default: UTF-8, or what its byte order mark says."
        ),
        click.option(
            "--delimiter", help="Of a csv or tsv: one character, or `tab`. Default: detected from the header."
        ),
        click.option(
            "--quoting",
            default="auto",
            show_default=True,
            help="Of a csv or tsv: minimal (quotes enclose values), none (they belong to the text), or auto.",
        ),
    ):
        command = option(command)
    return command


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


class ForStages(click.ParamType):
    """One value for all stages of a decoder, or one for each with commas between: 50 or 50,25. The value is a tuple.

    kind: of each. least: none is smaller.
    """

    def __init__(self, kind: type[int] | type[float] | type[str], least: int | None = None) -> None:
        self.kind = kind
        self.least = least
        self.name = "NAME[,…]" if kind is str else "N[,…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse `50` or `50,25`."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self.kind(part.strip()) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: write one number, or one for each stage with commas between: 64,256", param, ctx)
        if self.least is not None and any(not isinstance(it, str) and it < self.least for it in found):
            self.fail(f"{value!r}: every number must be {self.least} or more", param, ctx)
        return found


def one_or_each(values: tuple[Any, ...] | None) -> Any:
    """What `ForStages` gave, as the models take it: one value for all stages by itself."""
    return values[0] if values is not None and len(values) == 1 else values


class CommandWithImages(click.Command):
    """A command with `images_option`, which is called --images; --data was its name in some commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with the old spelling understood."""
        return super().parse_args(ctx, with_new_spelling(args, "--data", "--images"))


def with_new_spelling(args: list[str], old: str, new: str) -> list[str]:
    """`args` with an option's old spelling replaced; says so on stderr."""
    end = args.index("--") if "--" in args else len(args)
    renewed = [
        f"{new}{arg[len(old) :]}" if arg == old or arg.startswith(f"{old}=") else arg for arg in args[:end]
    ] + args[end:]
    if renewed != args:
        click.echo(f"note: {old} is called {new} now", err=True)
    return renewed


def _one_or_several(ctx: click.Context, param: click.Parameter, places: tuple[str, ...]) -> Any:
    return (places[0] if len(places) == 1 else places) or None


def images_option(use: str = "") -> Callable[[_Command], _Command]:
    """--images → `images`: one place, a tuple of several, or None. use: what the images are for. See `Images`."""
    said = f"Where the image shards are now{use}, if not where they were. Repeatable: the sources of merged data sets, "
    return click.option(
        "--images",
        multiple=True,
        metavar="PLACE",
        callback=_one_or_several,
        help=f"{said}or the parts of a divided folder.",
    )


def refuse_missing(*folders: str | None) -> None:
    """Raise InputError for a file or folder on this machine that is not there: at once, before torch is loaded.

    What may be a pattern is left to those who read it.
    """
    from embedpipe import files
    from embedpipe.errors import InputError

    for folder in folders:
        if folder is None or set("*?[{") & set(folder):
            continue
        if files.is_local(folder) and not files.exists(folder):
            raise InputError(f"{folder}: no such file or folder", "Check the path")


def refuse_other_runs(kind: str, command: str, *folders: str) -> None:
    """Raise InputError for a folder that is no training run of that kind, by `command`: before torch is loaded."""
    from embedpipe.unclip.runs.record import read_run_record

    for folder in folders:
        read_run_record(folder, kind, command)


def max_rejects_option(early: str = "") -> Callable[[_Command], _Command]:
    """--max-rejects → `max_rejects`, a `RejectLimit` or None. early: when a run ends before its end for it."""
    said = "Exit with 3 when more than this many (500) or this share (5%) were rejected."
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
    return click.option(
        "--executor",
        default="auto",
        show_default=True,
        help="inline, processes, ray, or auto: inline for one worker, processes for more.",
    )(address_option(command))


def address_option(command: _Command) -> _Command:
    """--address → `address`"""
    return click.option(
        "--address",
        metavar="HOST:PORT",
        help="The head of the Ray cluster. Default: RAY_ADDRESS, or a temporary one on this machine.",
    )(command)


def verbose_option(what: str) -> Callable[[_Command], _Command]:
    """-v / --verbose → `verbose`. what: what it shows."""
    return click.option("-v", "--verbose", is_flag=True, help=what)


def trust_option(what: str) -> Callable[[_Command], _Command]:
    """--trust-old-card → `trust_old_card`. what: it allows."""
    return click.option(
        "--trust-old-card",
        is_flag=True,
        help=f"{what}, if all that version 0.1 recorded about the encoder matches; it did not record the activation.",
    )


def trust_model_option(command: _Command) -> _Command:
    """--trust-model: consents to every model that the command's data names; remembered for later commands."""
    return click.option(
        "--trust-model",
        is_flag=True,
        expose_value=False,
        callback=_set_trust,
        help="Load the model that the data names although it was not used on this machine before. Remembered.",
    )(command)


def _set_trust(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from embedpipe.consent import ask_by

        ask_by(lambda question: True)


class PerChannel(click.ParamType):
    """Three numbers, one for each of red, green and blue: 0.48,0.46,0.41. The value is a tuple."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse `0.5,0.5,0.5`."""
        if isinstance(value, tuple):
            return value
        try:
            red, green, blue = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: write three numbers with commas between: 0.5,0.5,0.5", param, ctx)
        return red, green, blue


_MODEL_OPTIONS = ("quick_gelu", "mean", "std", "interpolation", "resize_mode", "like_tag")


def model_options(command: _Command) -> _Command:
    """What a checkpoint file does not say of itself; see `said_of_model`, which takes it out of a command's options."""
    for option in (
        click.option(
            "--resize-mode",
            type=click.Choice(RESIZE_MODES),
            help="How images are fitted to the input size; for checkpoint files of models whose tags differ in this.",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(INTERPOLATIONS),
            help="Interpolation used to resize images; for checkpoint files of models whose tags differ in this.",
        ),
        click.option(
            "--std",
            type=PerChannel(),
            help="Per-channel standard deviation that pixel values (0 to 1) are divided by; for checkpoint files.",
        ),
        click.option(
            "--mean",
            type=PerChannel(),
            help="Per-channel mean subtracted from pixel values (0 to 1); for checkpoint files.",
        ),
        click.option(
            "--quickgelu/--gelu",
            "quick_gelu",
            default=None,
            help="The activation that a checkpoint file was trained with; needed if the model's tags differ in this.",
        ),
        click.option(
            "--like-tag",
            metavar="TAG",
            help="Use a checkpoint file with the activation and preprocessing of this tag of the model.",
        ),
    ):
        command = option(command)
    return command


def said_of_model(options: dict[str, Any]) -> ModelOptions:
    """The values of `model_options`, taken out of `options`."""
    from embedpipe.clip_model.spec import ModelOptions

    return ModelOptions(**{name: options.pop(name) for name in _MODEL_OPTIONS})


class RecipeValue(click.ParamType):
    """One of a recipe's values, optim.lr=1e-4: a pair of its dotted name and what is JSON, or else a bare word."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse `optim.lr=1e-4`."""
        key, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value}: write it as key=value, for example optim.lr=1e-4", param, ctx)
        try:
            return key.strip(), json.loads(text)
        except ValueError:
            return key.strip(), text


def _as_mapping(ctx: click.Context, param: click.Parameter, pairs: Any) -> Any:
    return dict(pairs)


def config_options(command: _Command) -> _Command:
    """--config → `config`, --set → `settings`, a dict"""
    command = click.option(
        "--set",
        "settings",
        type=RecipeValue(),
        multiple=True,
        callback=_as_mapping,
        metavar="KEY=VALUE",
        help="Set one value, e.g. optim.lr=1e-4. Repeatable.",
    )(command)
    return click.option(
        "--config", type=click.Path(dir_okay=False), help="A JSON file of values that replace the preset's."
    )(command)


def training_options(command: _Command) -> _Command:
    """`config_options`, --steps → `steps`, --seed → `seed`, --log → `loggers`"""
    for option in (
        click.option(
            "--log", "loggers", multiple=True, metavar="NAME", help="tensorboard or wandb, besides metrics.jsonl."
        ),
        click.option("--seed", type=click.IntRange(0), help="Short for --set train.seed=N."),
        click.option("--steps", type=click.IntRange(1), help="Optimizer steps; short for --set train.steps=N."),
    ):
        command = option(command)
    return config_options(command)


def picture_options(command: _Command) -> _Command:
    """--input → `input_format`, --max-pixels → `max_pixels`"""
    command = click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=100_000_000,
        show_default=True,
        help="Leave out images with more pixels, before decoding.",
    )(command)
    return click.option(
        "--input", "input_format", default="auto", show_default=True, help="webdataset, folder, or auto (detect)."
    )(command)


def max_sample_seconds_option(command: _Command) -> _Command:
    """--max-sample-seconds → `max_sample_seconds`"""
    return click.option(
        "--max-sample-seconds",
        type=click.FloatRange(0, min_open=True),
        default=10.0,
        show_default=True,
        help="Reject images that take more processor time to decode.",
    )(command)


def row_options(command: _Command) -> _Command:
    """--normalise → `normalise`, --drop-nonfinite → `drop_nonfinite`"""
    command = click.option(
        "--drop-nonfinite", is_flag=True, help="Leave out rows with NaN or infinity, instead of refusing them."
    )(command)
    return click.option(
        "--normalise", is_flag=True, help="Normalise rows whose norm is not 1, instead of refusing them."
    )(command)


def device_option(several: bool = False) -> Callable[[_Command], _Command]:
    """--device → `device`. several: torchrun may start the command on each."""
    under = "; under torchrun, one each" if several else ""
    return click.option("--device", help=f"cpu, cuda, cuda:1 … Default: the first GPU, or the CPU{under}.")


def precision_option(what: str) -> Callable[[_Command], _Command]:
    """--precision → `precision`. what: whose matrix products."""
    return click.option(
        "--precision",
        type=click.Choice(("float32", "tf32", "bfloat16")),
        default="float32",
        show_default=True,
        help=f"Of the matrix products of {what}; tf32 is float32 on a CPU.",
    )


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
