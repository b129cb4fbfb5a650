"""Commands run in this process, errors as exceptions: for what the command line makes of data, not for how it ends."""

import json

from click.testing import CliRunner
from embedpipe_cli.main import cli


def run(*arguments):
    """click's result; `exception` is what the command raised, or None."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)


def result_of(*arguments):
    """The parsed --json output of a command that must succeed."""
    outcome = run(*arguments, "--json")
    assert outcome.exception is None, outcome.exception
    return json.loads(outcome.stdout)
