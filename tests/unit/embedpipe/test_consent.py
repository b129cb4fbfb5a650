"""What is remembered of this user's models and sources, and who is not taken for this user."""

import os
import stat

import pytest

from embedpipe import consent
from embedpipe.types import SourceShard

SHARDS = [SourceShard(f"{i:05}.tar", 1000 + i, str(1_700_000_000_000_000_000 + i)) for i in range(3)]


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDPIPE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_model_is_known_by_what_it_is_not_by_how_it_was_written(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(tmp_path)
    assert not consent.trusts_model("model")
    consent.trust_model("model")
    for spelled in (str(tmp_path / "model"), "./model/", "local-dir:model", "link"):
        assert consent.trusts_model(spelled), spelled
    assert not consent.trusts_model(str(tmp_path / "model2"))
    assert not consent.trusts_model("hf-hub:model")
    consent.trust_model("hf-hub:org/name")
    assert consent.trusts_model("hf-hub:org/name")
    assert not consent.trusts_model("hf-hub:org/name2")


def test_a_source_is_given_for_the_shards_that_were_read_from_it():
    assert not consent.gave_source("/photos", SHARDS)
    consent.remember_source("/photos", SHARDS[:1])
    assert consent.gave_source("/photos", SHARDS)
    assert not consent.gave_source("/photos/private", SHARDS)
    assert not consent.gave_source("s3://photos", SHARDS)
    touched = SourceShard(SHARDS[0].name, SHARDS[0].bytes, "1")
    assert not consent.gave_source("/photos", [touched, *SHARDS[1:]]), "a guess of the folder is not enough"
    assert not consent.gave_source("/photos", [])


def test_nothing_is_written_twice_and_only_the_user_reads_it(state):
    for _ in range(3):
        consent.remember_source("/photos", SHARDS)
        consent.trust_model("/model")
    (marks,) = (state / "sources").iterdir()
    assert len(marks.read_text().splitlines()) == len(SHARDS)
    (model,) = (state / "models").iterdir()
    assert model.read_text() == "/model\n"
    assert stat.S_IMODE((state / "models").stat().st_mode) & 0o077 == 0


def test_the_question_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setitem(consent._state, "ask", lambda question: asked.append(question) or len(asked) > 1)
    assert not consent.consents("hf-hub:a/b", "emb")
    assert consent.consents("hf-hub:a/b", "emb")
    assert consent.consents("hf-hub:a/b", "other")
    assert len(asked) == 2
    assert "hf-hub:a/b" in asked[0]
    assert "emb" in asked[0]


def test_without_a_place_to_remember_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBEDPIPE_STATE", str(tmp_path / "file" / "below"))
    consent.trust_model("/model")
    consent.remember_source("/photos", SHARDS)
    assert not consent.trusts_model("/model")
    assert not consent.gave_source("/photos", SHARDS)


def test_the_folder_is_the_users_state_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBEDPIPE_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert consent.state_root() == tmp_path / "xdg" / "embedpipe"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert consent.state_root() == tmp_path / ".local/state/embedpipe"
    assert not os.listdir(tmp_path)
