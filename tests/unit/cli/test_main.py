"""The front door: quick help, one line for every error, the promised exit codes."""

import io
import logging
import subprocess
import sys

import click
import pytest
from embedpipe_cli import display, main

from embedpipe.errors import DiskFull, InputError, OptionError, WorkerDied
from embedpipe.execute.messages import RemoteTraceback


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "encode --help", "verify --help", "search --help", "train-prior --help"]
)
def test_help_needs_no_torch(arguments):
    code = (
        "import sys; from embedpipe_cli import main\n"
        f"sys.argv = ['embedpipe', *{arguments.split()!r}]\n"
        "code = main._run()\n"
        "heavy = {'torch', 'open_clip', 'faiss', 'img2dataset', 'numpy', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_names_that_cannot_be_are_told_before_torch_is_loaded(tmp_path):
    lines = (
        "encode shards out --model ViT-B-33 --pretrained openai",
        f"encode shards out --model {tmp_path}/gone",
        "generate soup --decoder gone --prior gone",
        "train-prior gone out",
        "train-decoder shards gone out",
        "evaluate gone gone",
        "sample-prior gone out --prior gone",
    )
    code = (
        "import sys; from embedpipe_cli import main\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['embedpipe', *line.split()]\n"
        "    assert main._run() == 1, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(lines)
    assert said[0].startswith("error: no model 'ViT-B-33'. Did you mean ViT-B-32")
    assert all("no such f" in line for line in said[1:])


def test_every_command_has_help_with_an_example(embedpipe):
    for name in main.COMMANDS:
        result = embedpipe(name, "--help")
        assert result.exit_code == 0, name
        assert "--debug" in result.stdout
        assert f"embedpipe {name}" in result.stdout, name
    listed = embedpipe("--help").stdout
    assert all(name in listed for name in main.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encod"], "Did you mean encode?"),
        (["verify"], "Missing argument"),
        (["verify", "x", "--jsn"], "No such option"),
        (["encode", "a", "b"], "--model"),
        (["encode", "a", "b", "--model", "m", "--workers", "0"], "--workers"),
        (["encode", "a", "b", "--model", "m", "--max-rejects", "few"], "neither a count (500) nor a share (5%)"),
        (["encode", "a", "b", "--model", "m", "--max-rejects", "-1"], "negative"),
        (["search", "emb"], "give one of a text, --image, --key, --embedding or --queries"),
        (["search", "emb", "text", "--image", "f"], "give one of a text"),
    ],
)
def test_misuse_is_exit_code_2(embedpipe, arguments, said):
    result = embedpipe(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr


def caused(problem):
    problem.__cause__ = RemoteTraceback("Traceback of a worker")
    return problem


def raising(problem, monkeypatch):
    @click.command()
    def command():
        raise problem

    monkeypatch.setattr(main.LazyGroup, "get_command", lambda self, ctx, name: command)


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (InputError("x: no such file", "Check the path"), 1, "error: x: no such file. Check the path\n"),
        (DiskFull("full"), 1, "error: full\n"),
        (
            OptionError("`workers=0`: too few", "Give more `workers`"),
            2,
            "error: --workers 0: too few. Give more --workers\n",
        ),
        (InputError("`width=0`: no option of verify"), 1, "error: `width=0`: no option of verify\n"),
        (caused(WorkerDied("worker 0 failed", "Report it")), 1, "worker 0 failed. Report it (--debug shows it)\n"),
        (WorkerDied("worker 0 failed", "Report it"), 1, "worker 0 failed. Report it\n"),
        (caused(InputError("x: empty")), 1, "error: x: empty\n"),
        (ZeroDivisionError("a\nb"), 1, "internal error: ZeroDivisionError: a b. Run again with --debug"),
        (MemoryError(), 1, "error: out of memory."),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
        (PermissionError(13, "denied", "f"), 1, "PermissionError"),
    ],
)
def test_every_error_is_one_line(embedpipe, monkeypatch, problem, code, said):
    raising(problem, monkeypatch)
    result = embedpipe("verify")
    assert result.exit_code == code
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "embedpipe_cli", "verify", str(tmp_path / "no"), "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "InputError" in done.stderr


def test_a_reader_who_has_had_enough_is_no_error(encoded_once):
    line = f"{sys.executable} -m embedpipe_cli info {encoded_once[1]} | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_notice_is_shown_once_though_a_library_makes_the_root_logger_print(monkeypatch, capsys):
    def command(**_):
        display.show_notices()
        logging.getLogger("embedpipe.index").warning("the index is old")

    monkeypatch.setattr(main.cli, "main", command)
    printed = io.StringIO()
    root, handler = logging.getLogger(), logging.StreamHandler(printed)
    root.addHandler(handler)
    try:
        assert main._run() == 0
    finally:
        root.removeHandler(handler)
    assert printed.getvalue() == ""
    assert capsys.readouterr().err == "note: the index is old\n"
    assert logging.getLogger("embedpipe").propagate


@pytest.mark.parametrize(("typed", "offered"), [("ex", "plain,export"), ("export --spl", "plain,--splits")])
def test_a_shell_completes_commands_and_options(typed, offered, embedpipe, monkeypatch):
    words = f"embedpipe {typed}"
    monkeypatch.setenv("_EMBEDPIPE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert embedpipe().stdout.splitlines() == [offered]
