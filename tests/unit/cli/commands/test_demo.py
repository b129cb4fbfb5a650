"""demo: the commands it prints are ones a user can type, it ends where one fails, and it goes on when run again."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from embedpipe_cli import terminal
from embedpipe_cli.commands import demo
from embedpipe_cli.main import LazyGroup, cli

from embedpipe.demo.concepts import STYLES, list_concepts, split_of
from embedpipe.demo.pictures import DemoImage
from embedpipe.errors import InputError


def pictures(limit):
    concepts = list_concepts()[:limit]
    return [DemoImage("p", concept.phrase, "c", style, split_of(concept.code, style), "")
            for concept in concepts for style in STYLES]  # fmt: skip


@pytest.mark.parametrize("limit", [None, 40])
def test_every_command_can_be_typed(limit):
    steps = demo._steps(Path("out"), limit, pictures(limit))
    for name, *arguments in (step.command for step in steps):
        command = LazyGroup.get_command(cli, None, name)
        # Raises UsageError for an option that is not there. Below its group, whose name of the help option click keeps.
        command.make_context(name, list(arguments), parent=click.Context(cli, **cli.context_settings))
    names = [step.command[0] for step in steps]
    assert names[:4] == ["fetch", "train-clip", "encode", "verify"]
    assert names[-3:] == ["train-decoder", "generate", "generate"]


def test_a_small_set_is_not_asked_for_what_it_lacks():
    assert sum(picture.split == "unseen" for picture in pictures(40)) == 0
    assert not [step for step in demo._steps(Path("out"), 40, pictures(40)) if "unseen" in step.command]
    assert [step for step in demo._steps(Path("out"), None, pictures(None)) if "unseen" in step.command]


def test_it_ends_with_the_exit_code_of_the_command_that_failed(tmp_path, monkeypatch):
    asked = []

    def fail_at_encode(command):
        asked.append(command[3])
        return 3 if command[3] == "encode" else 0

    monkeypatch.setattr(demo, "_run_and_pass_on_interrupts", fail_at_encode)
    outcome = CliRunner().invoke(cli, ["demo", str(tmp_path), "--limit", "40"])
    assert outcome.exit_code == 3
    assert asked == ["fetch", "train-clip", "encode"]
    assert "the demo stopped at `embedpipe encode` (exit code 3)" in outcome.stderr
    assert f"$ embedpipe fetch {tmp_path}/urls.csv {tmp_path}/shards" in outcome.stdout


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "begin", "end"), [(Terminal, "\x1b[1m", "\x1b[0m"), (io.StringIO, "", "")])
def test_a_command_is_drawn_bold_on_a_terminal_alone_where_its_names_do_nothing(monkeypatch, stream, begin, end):
    monkeypatch.setattr(demo, "_run_and_pass_on_interrupts", lambda command: 0)
    monkeypatch.setattr(sys, "stdout", stream())
    with terminal.edge(), click.Context(demo.command, color=True) as ctx:  # as `main` runs every command
        demo._run(ctx, demo.DemoStep("find", ("search", "emb", "a\u202eb")))
    assert sys.stdout.getvalue() == f"{begin}\n$ embedpipe search emb 'a\\u202eb'{end}\n"


def test_run_again_it_serves_the_same_urls(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_run_and_pass_on_interrupts", lambda command: 1)
    tables = []
    for _ in range(2):
        CliRunner().invoke(cli, ["demo", str(tmp_path), "--limit", "40"])
        tables.append((tmp_path / "urls.csv").read_text())
    assert tables[0] == tables[1]
    assert len(list(csv.DictReader(tables[0].splitlines()))) == 80


def test_a_port_in_use_is_said(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "server.json").write_text(json.dumps({"port": taken.getsockname()[1]}))
        outcome = CliRunner().invoke(cli, ["demo", str(tmp_path), "--limit", "40"])
    assert isinstance(outcome.exception, InputError)
    assert "cannot be served" in str(outcome.exception)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_the_command_once_and_is_waited_for(tmp_path, sent):
    child = (
        "import pathlib, signal, sys, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: heard.append(1))\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "(here / 'ready').touch()\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.7)\n"
        "(here / 'heard').write_text(str(len(heard)))\n"
        "sys.exit(130)\n"
    )
    parent = (
        "import signal, sys\n"
        "from embedpipe_cli import main\n"
        "from embedpipe_cli.commands import demo\n"
        # Ctrl-C is ignored by what a shell runs in the background; the command must hear of the end all the same.
        f"{'signal.signal(signal.SIGINT, signal.SIG_IGN)' if sent == signal.SIGTERM else ''}\n"
        "signal.signal(signal.SIGTERM, main._interrupt)\n"
        f"demo._run_and_pass_on_interrupts([sys.executable, '-c', {child!r}, sys.argv[1]])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path)], start_new_session=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 600
    while not (tmp_path / "ready").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, sent)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=600)
    assert b"KeyboardInterrupt" in errors
    assert (tmp_path / "heard").read_text() == "1"
