"""A hub that cannot be reached: one line, no retries; what a proxy may reach is asked for."""

import socket

import pytest
from huggingface_hub import constants

from embedpipe.encode import EncoderConfig
from embedpipe.encode.data_only import unreachable_hub
from embedpipe.encode.loading import load_model
from embedpipe.errors import ModelError

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """The hub is a port of this machine where nobody listens, and nothing of it is cached."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield taken


@pytest.mark.parametrize("model", [("ViT-B-32", "laion2b_s34b_b79k"), ("hf-hub:timm/vit_base", "")])
def test_a_model_of_it_is_refused_by_name_and_reason_without_retries(nobody, model, caplog, capfd):
    with pytest.raises(
        ModelError, match=r"could not be downloaded: 127\.0\.0\.1 cannot be reached \(Connection refused"
    ):
        load_model(EncoderConfig(*model))
    assert "Retrying" not in caplog.text + "".join(capfd.readouterr())
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_listens_or_lies_behind_a_proxy_is_asked(nobody, monkeypatch):
    assert unreachable_hub() is not None
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert unreachable_hub() is None
    monkeypatch.delenv("https_proxy")
    nobody.listen()
    assert unreachable_hub() is None
