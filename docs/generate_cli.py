"""Writes docs/cli.md from the commands' own help. `python docs/generate_cli.py`; a test holds the two together."""

from __future__ import annotations

from pathlib import Path

import click
from embedpipe_cli.main import COMMANDS, cli

PAGE = Path(__file__).parent / "cli.md"


def reference() -> str:
    """The whole page."""
    context = click.Context(
        cli, info_name="embedpipe", terminal_width=100, max_content_width=100, **cli.context_settings
    )
    parts = ["# The command line", "", "Generated from `--help` by `make docs`.", "", *_block(cli, context)]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None, name
        inner = click.Context(command, parent=context, info_name=name, terminal_width=100, max_content_width=100)
        parts += [f"## embedpipe {name}", "", *_block(command, inner)]
    parts += [_EXIT_CODES]
    return "\n".join(parts)


def _block(command: click.Command, context: click.Context) -> list[str]:
    return ["```text", command.get_help(context), "```", ""]


_EXIT_CODES = """## Exit codes

| code | means |
|---|---|
| 0 | done |
| 1 | an error, told in one line: data, models or machine do not go with the command; `--debug` shows the traceback |
| 2 | usage: an option, argument or setting that cannot be, whatever the data hold; or they exclude each other |
| 3 | finished, with more rejects than `--max-rejects` allows, shards set aside, or not one image fetched |
| 130 | interrupted (Ctrl-C, SIGTERM); the same command goes on where it stopped |
"""


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
