"""serve: it says where it is, answers there, and an interruption is how it ends."""

import signal
import sys
import urllib.request

import pytest

from embedpipe import ServeConfig
from embedpipe.errors import MissingExtra
from embedpipe.serve.job import open_service
from tests.commands import run


def test_it_answers_where_it_says_until_it_is_interrupted(embedpipe_process, encoded_once, tmp_path):
    server = embedpipe_process("serve", encoded_once[1], "--no-model", "--port", "0", cwd=tmp_path)
    said = server.stdout.readline()
    address = said.split()[2]
    assert said.startswith("serving at http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"embedpipe" in page.read()
    server.send_signal(signal.SIGINT)
    rest, complaints = server.communicate(timeout=60)
    assert (server.returncode, rest, complaints) == (0, "stopped\n", "")
    assert list(tmp_path.iterdir()) == [], "nothing is written before a selection is saved"


def test_the_token_is_not_printed(embedpipe_process, encoded_once, tmp_path):
    words = ("--no-model", "--port", "0", "--token", "secret-" * 4)
    server = embedpipe_process("serve", encoded_once[1], *words, cwd=tmp_path)
    server.stdout.readline()
    assert "token" in server.stdout.readline()
    server.send_signal(signal.SIGTERM)
    rest = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "secret" not in str(rest)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--host"),
        (["--token", "short"], "--token"),
        (["--allow-origin", "gpu7"], "--allow-origin"),
        (["--no-model", "--model", "x"], "--no-model"),
        (["other", "--images", "there"], "--images"),
    ],
)
def test_usage_is_refused_with_the_options_named(embedpipe, encoded_once, words, said):
    words = [encoded_once[1] if word == "other" else word for word in words]
    outcome = embedpipe("serve", encoded_once[1], *words)
    assert outcome.exit_code == 2
    assert said in outcome.stderr


def test_a_folder_without_embeddings_is_refused(tmp_path):
    assert "no such file" in str(run("serve", tmp_path / "none").exception)


def test_without_the_extra_it_says_what_to_install(monkeypatch, encoded_once):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"embedpipe\[serve\]"):
        open_service([encoded_once[1]], ServeConfig(no_model=True))
