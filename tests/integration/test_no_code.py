"""A model whose tokenizer or text tower would run its own Python is never given the chance."""

import json
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from embedpipe import consent
from tests import stranger

pytest.importorskip("transformers")

EVIL = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import PreTrainedTokenizerFast, PretrainedConfig
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(PretrainedConfig):
    model_type = "evil"
"""


@pytest.fixture
def marker(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as code

    monkeypatch.setattr(code, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path / "ran"


@pytest.fixture
def evil(tmp_path, tiny_model, marker):
    """Makes a model folder with code in it. text: what its text_cfg says besides."""

    def make(**text):
        folder = shutil.copytree(tiny_model, tmp_path / "evil", dirs_exist_ok=True)
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"] |= text
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
        names = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.EvilConfig"}
        for name in ("tokenizer_config.json", "config.json"):
            (folder / name).write_text(
                json.dumps({"auto_map": names, "tokenizer_class": "Evil", "model_type": "evil", "architectures": ["E"]})
            )
        return folder

    return make


TRUSTING = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}


def test_the_code_would_run(evil, marker):
    """Or the tests below would show nothing."""
    from transformers import AutoTokenizer

    with pytest.raises(Exception):  # noqa: B017, PT011  # its files are no tokenizer's, but it ran
        AutoTokenizer.from_pretrained(str(evil()), trust_remote_code=True)
    assert marker.exists()


def test_encode_refuses_a_folder_that_trusts_itself(evil, marker, encoded_once, embedpipe, tmp_path):
    folder = evil(**TRUSTING)
    done = embedpipe("encode", encoded_once[0], tmp_path / "out", "--model", folder, "--gpus", "0")
    assert done.exit_code == 1
    assert "text_cfg.tokenizer_kwargs.trust_remote_code" in done.stderr
    assert "open_clip_config.json" in done.stderr
    assert not marker.exists()
    assert not (tmp_path / "out" / "embedpipe.json").exists()


@pytest.mark.parametrize("text", [{"hf_tokenizer_name": "x"}, TRUSTING])
def test_search_and_generate_refuse_what_a_card_names_even_with_consent(evil, marker, encoded, embedpipe, text):
    from embedpipe.errors import EmbedpipeError
    from embedpipe.index import encoder_of
    from embedpipe.load import EmbeddingDataset

    emb = stranger.names(encoded, model=str(evil(**text)))
    done = embedpipe("search", emb, "a text", "--trust-model")
    assert done.exit_code == 1
    assert "internal error" not in done.stderr
    with pytest.raises(EmbedpipeError):  # as train-prior, evaluate and generate load it
        encoder_of(EmbeddingDataset(emb).card.of_encoder(), "prior")
    assert not marker.exists()


def test_a_folder_that_names_code_without_trusting_it_does_not_run_it_nor_asks(evil, marker, encoded_once, embedpipe):
    folder = evil(hf_tokenizer_name="x")
    done = embedpipe("encode", encoded_once[0], folder.parent / "out", "--model", folder, "--gpus", "0")
    assert done.exit_code == 1
    assert "[y/N]" not in done.output
    assert "internal error" not in done.stderr
    assert not marker.exists()


def test_not_even_a_library_that_trusts_it_runs_it(evil, marker):
    from transformers import AutoTokenizer

    from embedpipe.encode.data_only import as_data

    with as_data(transformers=True, offline=True), pytest.raises(Exception):  # noqa: B017, PT011
        AutoTokenizer.from_pretrained(str(evil()), trust_remote_code=True)
    assert not marker.exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub on loopback: its files by path, and what was asked of it."""
    files, asked = {}, []

    class Serve(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            data = files.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"e"')
            self.end_headers()
            return data

        def do_GET(self):
            self.wfile.write(self.do_HEAD() or b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Serve)
    Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield files, asked
    server.shutdown()
    server.server_close()


def test_a_repository_of_the_hub_that_trusts_itself_is_refused(hub, evil, marker, encoded_once, embedpipe, tmp_path):
    files, asked = hub
    for path in evil(**TRUSTING).iterdir():
        files[f"/attacker/repo/resolve/main/{path.name}"] = path.read_bytes()
    done = embedpipe("encode", encoded_once[0], tmp_path / "out", "--model", "hf-hub:attacker/repo", "--gpus", "0")
    assert done.exit_code == 1
    assert "tokenizer_kwargs.trust_remote_code" in done.stderr
    assert not marker.exists()
    assert {path.rpartition("/")[2] for path in asked if "attacker" in path} == {"open_clip_config.json"}, (
        "nothing else was asked for"
    )


@pytest.mark.parametrize("consented", [False, True])
def test_a_folder_that_names_a_repository_asks_for_it_after_consent(
    hub, monkeypatch, evil, encoded_once, embedpipe, tmp_path, consented
):
    monkeypatch.setenv("EMBEDPIPE_STATE", str(tmp_path / "state"))
    _, asked = hub
    folder = evil(hf_model_name="someone/repo", hf_tokenizer_name="someone/repo")
    more = ["--trust-model"] * consented
    done = embedpipe("encode", encoded_once[0], tmp_path / "out", "--model", folder, "--gpus", "0", *more)
    assert done.exit_code == 1
    assert any("someone/repo" in path for path in asked) is consented
    if not consented:
        assert "hf-hub:someone/repo" in done.stderr
        assert "--trust-model" in done.stderr
    assert consent.trusts_model("hf-hub:someone/repo") is consented
