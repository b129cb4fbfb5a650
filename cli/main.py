"""The `embedpipe` command: loads a command's module when it is asked for, and turns errors into exit codes.

0 done · 1 our error, one line · 2 usage · 3 finished, with too many rejects or nothing at all · 130 interrupted
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

from embedpipe.consent import ask_by
from embedpipe.imports import uncollected
from embedpipe.openmp import bound_spinning
from embedpipe.pillow import ignore_metadata_warnings
from embedpipe.visible import visible

from .display import notices_shown_once, show_notices
from .fields import set_running, with_options
from .options import debugging
from .terminal import edge

# In the order of the story; each lives in the module of that name and is called `command` there.
COMMANDS = (
    "demo",
    "fetch",
    "encode",
    "info",
    "verify",
    "merge",
    "index",
    "search",
    "serve",
    "dedup",
    "filter",
    "takedown",
    "export",
    "train-clip",
    "train-prior",
    "train-vae",
    "train-decoder",
    "evaluate",
    "sample-prior",
    "generate",
    "convert",
    "models",
    "doctor",
)

_COMPLETION = "_EMBEDPIPE_COMPLETE"
EXIT_ERROR, EXIT_USAGE, EXIT_REJECTS, EXIT_INTERRUPTED = 1, 2, 3, 130


class LazyGroup(click.Group):
    """A group that imports a command's module only when it needs the command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the story."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        with uncollected():
            module = importlib.import_module(f".commands.{cmd_name.replace('-', '_')}", __package__)
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown command names the near ones."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from embedpipe.errors import did_you_mean

            raise click.UsageError(f"No command {args[0]!r}. {did_you_mean(args[0], COMMANDS)}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        set_running(name or "")
        return name, command, rest


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="embedpipe")
def cli() -> None:
    """Image-text data from URLs to CLIP embeddings on disk, and from those to a trained unCLIP prior and decoder.

    \b
    embedpipe demo                       the whole story, offline, in minutes
    embedpipe fetch urls.parquet shards  a url table → image shards
    embedpipe encode shards emb --model ViT-L-14 --pretrained openai
    embedpipe train-prior emb prior
    embedpipe train-decoder shards emb decoder

    Every command, run again, goes on where it stopped.
    """
    show_notices()
    ask_by(_ask_on_terminal)


def _ask_on_terminal(question: str) -> bool:
    """Whether the user says yes; no where there is no terminal, as in a script."""
    return sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(question, default=False, err=True)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> NoReturn:
    """The console script."""
    bound_spinning()  # before torch or faiss load their OpenMP, which reads its variables then and never again
    ignore_metadata_warnings()
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's end is an interruption like any other
    try:
        code = _run()
    except Exception:  # of --debug
        with edge():
            traceback.print_exc()
        code = EXIT_ERROR
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process with `code`, as Python would but for the last step: taking the libraries apart.

    Arrow's idle threads sometimes abort the process there, after a good run (apache/arrow issue 34314): up to one run
    in ten of a short command on a busy machine.
    """
    for ends in (signal.SIGINT, signal.SIGTERM):  # the command has ended: an interruption comes too late to change that
        signal.signal(ends, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # who read it has gone
            stream.flush()
    os._exit(code)


def _run() -> int:
    if _COMPLETION in os.environ:  # a shell asks for names of ours, which click writes as bytes
        cli.main(prog_name="embedpipe")
    with edge(), notices_shown_once():
        return _answer()


def _answer() -> int:
    try:
        result = cli.main(standalone_mode=False, color=True)  # else click takes escapes of data out unseen
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as problem:
        _show(problem)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; run the same command again to go on\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; closing stdout quietly keeps Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as problem:  # the one place where everything ends as one line
        if debugging():
            raise
        _say(f"{visible(_one_line(problem))}\n")
        return _exit_code(problem)


def _show(problem: click.ClickException) -> None:
    """As click does, but like every other error: in lower case, with fields as options."""
    said = io.StringIO()
    problem.show(said)
    _say(with_options(said.getvalue().replace("Error: ", "error: ", 1)))


def _say(text: str) -> None:
    click.echo(text, nl=False, err=True, color=True)


def _exit_code(problem: Exception) -> int:
    from embedpipe.errors import OptionError, TooManyRejects

    core = sys.modules.get("dalle2_core.errors")
    if isinstance(problem, OptionError) or (core is not None and isinstance(problem, core.ConfigError)):
        return EXIT_USAGE
    return EXIT_REJECTS if isinstance(problem, TooManyRejects) else EXIT_ERROR


def _one_line(problem: Exception) -> str:
    from embedpipe.errors import EmbedpipeError
    from embedpipe.scarcity import lack_of, out_of

    core = sys.modules.get("dalle2_core.errors")  # no need to load torch to say that a file is missing
    ours = (EmbedpipeError, core.CoreError) if core is not None else EmbedpipeError
    if isinstance(problem, ours):
        return with_options(f"error: {problem}") + " (--debug shows it)" * _has_worker_traceback(problem)
    if isinstance(problem, MemoryError):
        return "error: out of memory. Try a smaller --batch-size or fewer --workers"
    if (lack := lack_of(problem)) is not None:
        return f"error: {out_of(lack)}"
    text = " ".join(str(problem).split())[:500]
    return f"internal error: {type(problem).__name__}: {text}. Run again with --debug for the traceback"


def _has_worker_traceback(problem: Exception) -> bool:
    from embedpipe.errors import WorkerDied

    messages = sys.modules.get("embedpipe.execute.messages")  # loaded where there was a worker
    caused = messages is not None and isinstance(problem.__cause__, messages.RemoteTraceback)
    return caused and isinstance(problem, WorkerDied)


if __name__ == "__main__":
    main()
