"""Commands run in this process: with errors as exceptions, or to their end, with errors as lines and exit codes."""

import json
import sys

from click.testing import CliRunner
from embedpipe_cli import main
from embedpipe_cli.main import cli


def run(*arguments):
    """click's result; `exception` is what the command raised, or None."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)


def result_of(*arguments):
    """The parsed --json output of a command that must succeed."""
    outcome = run(*arguments, "--json")
    assert outcome.exception is None, outcome.exception
    return json.loads(outcome.stdout)


class _Program:
    """For CliRunner, which calls click's own main: ours also turns errors into exit codes, so it is what is run."""

    name = "embedpipe"

    def main(self, args, prog_name, **_):
        before, sys.argv = sys.argv, ["embedpipe", *args]
        try:
            sys.exit(main._run())
        finally:
            sys.argv = before


def run_to_its_end(*arguments, charset="utf-8"):
    """click's result, with the exit code and the output of the program, in that encoding."""
    return CliRunner(charset=charset).invoke(_Program(), [str(argument) for argument in arguments])
