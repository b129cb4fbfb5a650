"""What people see while a job runs: where it is, what it lost, where its time goes; plain lines without a terminal."""

import io
import sys

import click
import pytest
from embedpipe_cli import display
from embedpipe_cli.terminal import edge as terminal_edge

from embedpipe.progress import Finished, Progress, TaskReport
from tests import shards

REPORT = TaskReport(1, 30, 2, {"x": 2}, 5, {"wait": 1.0, "model": 6.0, "write": 0.001})


def test_the_line_says_where_the_time_goes(capsys):
    with display.progress("encode") as view:
        view(Progress(planned=4))
        assert view.text().startswith("0/4 shards, 0 samples, 0.0/s")
        view(Progress(rows=10, rejected=1, spent_s={"model": 3.0}))
        view(Progress(rows=20, rejected=1, tasks=1, spent_s={"model": 3.0, "wait": 2.0, "write": 0.001}))
        text = view.text()
    assert text.startswith("1/4 shards, 30 samples, 2 rejected, ")
    assert text.endswith("/s, model 75%, wait 25%")
    assert capsys.readouterr().err == "", "no line before its time"


def test_plain_lines_come_every_few_seconds(capsys, monkeypatch):
    monkeypatch.setattr(display, "_PLAIN_EVERY_S", 0)
    with display.progress("encode") as view:
        view(Progress(rows=3))
    assert capsys.readouterr().err.startswith("encode: 3 samples, ")


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("view", [display._PlainView, display._TerminalView])
def test_verbose_adds_a_line_for_each_finished_shard(view, verbose, capsys):
    shown = view("encode", "samples", "shards", verbose)
    shown(Progress(tasks=1, finished=Finished(3, "a [b].tar", REPORT, 8.0)))
    shown.close()
    line = "worker 3: a [b].tar: 30 samples, 2 rejected, 8.0 s, 4.0/s, model 75%, wait 12%"
    assert (line in capsys.readouterr().err) == verbose


def test_bars_of_a_histogram():
    assert display.text_histogram(-0.1, 0.3, [1, 0, 4, 1000], width=10) == [
        " -0.100 to  0.000  ▏          1",
        "  0.000 to  0.100             0",
        "  0.100 to  0.200  ▏          4",
        "  0.200 to  0.300  ██████████ 1,000",
    ]
    assert display.text_histogram(0.5, 0.5, [0, 3]) == [f"  0.500 to  0.500  {'█' * 40} 3"]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_is_drawn_on_by_us_alone(monkeypatch):
    """Bars draw with escapes of their own; those of data are written out, and rich reads no markup in it."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[31m\u202e[/red]:cat:\x9b2J"
    terminal = sys.stderr
    with terminal_edge():
        with display.progress(evil, verbose=True) as view:
            view(Progress(doing=evil))
            view(Progress(tasks=1, finished=Finished(3, evil, REPORT, 8.0)))
            click.echo(f"said {evil}", err=True, color=True)
        display.print_table([evil], [[evil]], evil)
        click.echo(f"after {evil}", err=True, color=True)
    for printed in (terminal.getvalue(), sys.stdout.getvalue()):
        for part in ("\x1b]52", "\x07", "\u202e", "\x9b", "\x1b[31m"):
            assert part not in printed
        assert "\\x1b]52;c;ZXZpbA==\\x07\\x1b[31m\\u202e[/red]:cat:\\x9b2J" in printed
    assert "\x1b[" in terminal.getvalue(), "the bars themselves are drawn"


def test_one_of_a_unit_is_singular():
    with display.progress("search", "queries") as view:
        view(Progress(rows=1))
        assert " 1 query," in f" {view.text()}"
        view(Progress(rows=1))
        assert " 2 queries," in f" {view.text()}"


def test_the_last_line_tells_of_the_end(capsys, monkeypatch):
    monkeypatch.setattr(display, "_PLAIN_EVERY_S", 0)
    with display.progress("encode") as view:
        view(Progress(planned=2, planned_rows=6))
        view(Progress(rows=3, tasks=1))
        monkeypatch.setattr(display, "_PLAIN_EVERY_S", 1e9)
        view(Progress(rows=2, rejected=1, tasks=1))
        view(Progress(doing="writing"))
    *_, before, last = capsys.readouterr().err.splitlines()
    assert before.startswith("encode: 1/2 shards, 3 samples, ")
    assert before.endswith(" left")
    assert last.startswith("encode: 2/2 shards, 5 samples, 1 rejected, ")
    assert " left" not in last
    with display.progress("encode") as view:
        view(Progress(planned=2))
    assert capsys.readouterr().err == "", "a short run says nothing before its summary"


def test_the_last_line_of_a_command_is_its_end(embedpipe, encoded_once, tiny_model, tmp_path, monkeypatch):
    """Whatever steps a job reports, they add up to all of its tasks and rows."""
    monkeypatch.setattr(display, "_PLAIN_EVERY_S", 0)
    source, emb = encoded_once
    encode = ("encode", source, tmp_path / "emb", "--model", tiny_model, "--gpus", "0")
    for words, end in (
        (("fetch", _photos(tmp_path), tmp_path / "shards", "--samples-per-shard", "2"), "3/3 shards, 5 urls, 80.0% ok"),
        (encode, "3/3 shards, 21 samples, "),
        (("index", tmp_path / "emb"), "42 rows, "),
        (("dedup", emb, tmp_path / "dedup", "--confirm", "none"), "21 "),
    ):
        done = embedpipe(*words)
        assert done.exit_code == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"{words[0]}: ") and "/s" in line]
        assert end in lines[-1], (words[0], lines[-3:])


def _photos(folder):
    shards.write_files(folder / "photos", [(f"{i}.jpg", shards.jpeg(i)) for i in range(4)])
    shards.write_files(folder / "photos", [("4.txt", b"alone")])
    return folder / "photos"
