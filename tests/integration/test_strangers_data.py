"""Data sets and runs of others: what they name is neither loaded, asked for nor shown unless the user gave it."""

import shutil
import socket
import threading

import pytest

import embedpipe as library
from embedpipe import consent
from embedpipe.errors import UntrustedModel
from embedpipe.index import query_encoder
from embedpipe.load import EmbeddingDataset
from tests import shards, stranger


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """This user has encoded nothing here yet."""
    monkeypatch.setenv("EMBEDPIPE_STATE", str(tmp_path / "another-user"))
    monkeypatch.setitem(consent._state, "ask", consent._nobody)


@pytest.fixture
def listener():
    """A server on loopback, and who connected to it."""
    called = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            called.append(connection.getpeername())
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], called
    server.close()


def test_a_model_that_only_a_data_set_names_is_not_loaded(elsewhere, encoded, tiny_model, embedpipe, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    emb = stranger.names(encoded, model=str(copy))
    done = embedpipe("search", emb, "a text")
    assert done.exit_code == 1
    assert str(copy) in done.stderr
    assert emb in done.stderr
    assert "--trust-model" in done.stderr
    assert not consent.trusts_model(str(copy))

    assert embedpipe("search", emb, "a text", "--trust-model").exit_code == 0
    assert embedpipe("search", emb, "a text").exit_code == 0, "it is remembered"


def test_a_model_that_the_user_gives_is_loaded_and_remembered(elsewhere, encoded, tiny_model, embedpipe):
    assert embedpipe("search", encoded, "a text").exit_code == 1
    assert embedpipe("search", encoded, "a text", "--model", tiny_model).exit_code == 0
    assert embedpipe("search", encoded, "a text").exit_code == 0


@pytest.mark.parametrize("model", ["hf-hub:attacker/repo", "local-dir:{copy}", "{copy}"])
def test_nothing_is_asked_of_a_hub_or_read_of_a_folder(elsewhere, encoded, tiny_model, tmp_path, monkeypatch, model):
    import open_clip

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    emb = stranger.names(encoded, model=model.format(copy=copy))
    monkeypatch.setattr(open_clip, "create_model", None)
    monkeypatch.setattr(open_clip, "get_model_config", None)
    with pytest.raises(UntrustedModel, match="names the model"):
        query_encoder(EmbeddingDataset(emb))


def test_a_checkpoint_file_that_only_a_data_set_names_is_not_opened(elsewhere, encoded, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    emb = stranger.names(encoded, model="ViT-B-32", pretrained=str(tmp_path / "weights.pt"))
    with pytest.raises(UntrustedModel, match="weights.pt"):
        query_encoder(EmbeddingDataset(emb))


def test_open_clips_own_names_need_no_consent(elsewhere):
    from embedpipe.clip_model.trusted import require_trusted

    require_trusted("ViT-B-32", "openai", "emb")
    require_trusted("ViT-B/32", "laion2b_s34b_b79k", "emb")
    require_trusted("ViT-B-32", "random", "emb")


def test_what_was_encoded_here_is_searched_without_a_question(elsewhere, encode_config, tmp_path, embedpipe):
    source = shards.write_shards(tmp_path / "shards", shards=1)
    library.encode(source, str(tmp_path / "emb"), encode_config())
    done = embedpipe("search", tmp_path / "emb", "a text", "--save", tmp_path / "sheet.png")
    assert done.exit_code == 0
    assert "said to lie" not in done.stderr
    moved = (tmp_path / "emb").rename(tmp_path / "moved")
    assert embedpipe("search", moved, "a text").exit_code == 0, "a data set may be moved"
    assert "no picture" not in _page(embedpipe, moved, tmp_path)


def _page(embedpipe, emb, tmp_path, *more):
    done = embedpipe("info", emb, "--html", tmp_path / "page.html", *more)
    assert done.exit_code == 0, done.stderr
    return (tmp_path / "page.html").read_text() + done.stderr


def test_a_folder_that_only_a_data_set_names_is_not_shown(elsewhere, encoded, encoded_once, embedpipe, tmp_path):
    page = _page(embedpipe, encoded, tmp_path)
    assert "data:image" not in page
    assert f"are said to lie in {encoded_once[0]}; give it with --images" in page
    assert "data:image" in _page(embedpipe, encoded, tmp_path, "--images", encoded_once[0])
    assert "data:image" in _page(embedpipe, encoded, tmp_path), "it is remembered"


def test_a_folder_that_the_user_encoded_is_not_shown_by_the_data_set_of_another(
    elsewhere, encode_config, encoded, embedpipe, tmp_path
):
    private = shards.write_shards(tmp_path / "private", shards=3)
    library.encode(private, str(tmp_path / "mine"), encode_config())
    emb = stranger.names(encoded, source=private)
    assert "data:image" not in _page(embedpipe, emb, tmp_path)


@pytest.mark.parametrize("scheme", ["ftp", "http", "sftp", "webhdfs", "github", "simplecache::ftp"])
def test_no_server_that_only_a_data_set_names_is_connected_to(
    elsewhere, encoded, encoded_once, embedpipe, tmp_path, listener, scheme
):
    port, called = listener
    emb = stranger.names(encoded, source=f"{scheme}://127.0.0.1:{port}/shards")
    assert "data:image" not in _page(embedpipe, emb, tmp_path)
    for command in (
        ("search", emb, "--key", "s0-0000", "--save", tmp_path / "sheet.html"),
        ("dedup", emb, tmp_path / f"dedup-{scheme}", "--confirm", "pictures"),
        ("export", emb, tmp_path / f"images-{scheme}", "--to", "hf"),
    ):
        embedpipe(*command)
    assert called == []


def test_a_source_inside_the_data_set_is_shown(elsewhere, encoded, encoded_once, embedpipe, tmp_path):
    inside = shutil.copytree(encoded_once[0], encoded / "shards")
    emb = stranger.names(encoded, source=str(inside))
    assert "data:image" in _page(embedpipe, emb, tmp_path)
    shutil.rmtree(inside)
    inside.symlink_to(encoded_once[0])
    assert "data:image" not in _page(embedpipe, emb, tmp_path), "a link leads outside"


@pytest.mark.parametrize(
    ("dataset", "source", "opened"),
    [
        ("s3://mine/emb", "s3://mine/shards", True),
        ("s3://mine/emb", "s3://theirs/shards", False),
        ("s3://mine/emb", "gs://mine/shards", False),
        ("s3://mine/emb", "/home/me/photos", False),
        ("s3://mine/emb", "simplecache::s3://mine/shards", False),
        ("/data/emb", "/data/emb/../photos", False),
        ("/data/emb", "/data/emb2", False),
        ("/data/emb", "/data/emb/shards", True),
        ("/data/emb", "file:///data/emb/shards", True),
        ("https://host/emb", "https://host.evil/shards", False),
        ("https://host/emb", "https://host@evil/shards", False),
    ],
)
def test_which_store_is_the_data_sets_own(elsewhere, dataset, source, opened):
    from embedpipe.load.images.guarded_source import guarded_source

    assert bool(guarded_source(dataset, source, ())) is opened


def test_sources_of_merged_data_sets_are_guarded_one_by_one(elsewhere, encode_config, encoded, embedpipe, tmp_path):
    mine = shards.write_shards(tmp_path / "mine-shards", shards=1)
    library.encode(mine, str(tmp_path / "mine"), encode_config())
    assert embedpipe("merge", tmp_path / "mine", encoded, tmp_path / "both").exit_code == 0
    page = _page(embedpipe, tmp_path / "both", tmp_path)
    assert "data:image" in page
    assert "no picture" in page


def test_trainings_evaluation_and_generation_do_not_load_it_either(
    elsewhere, encoded, tiny_model, embedpipe, tmp_path, monkeypatch
):
    import dataclasses

    import open_clip

    from embedpipe.unclip.data.token_states import token_states
    from embedpipe.unclip.evaluate.image_features import open_features
    from embedpipe.unclip.generate.models import Models, _encoder

    monkeypatch.setattr(open_clip, "create_model", None)
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    emb = stranger.names(encoded, model=str(copy))
    dataset = EmbeddingDataset(emb)
    for load in (
        lambda: token_states(dataset, "cpu"),
        lambda: open_features("encoder", dataset, "cpu"),
        lambda: _encoder(Models("decoder", "prior"), {"encoder": dataclasses.asdict(dataset.card)}),
    ):
        with pytest.raises(UntrustedModel, match=str(copy)):
            load()
    done = embedpipe("train-prior", emb, tmp_path / "prior", "--steps", "1", "--set", "text_tokens=true")
    assert done.exit_code == 1
    assert "say so once with --trust-model" in done.stderr


def test_commands_that_need_no_model_load_none(elsewhere, encoded, embedpipe, tmp_path, monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "create_model", None)
    emb = stranger.names(encoded, model="hf-hub:attacker/repo")
    for command in (
        ("info", emb, "--html", tmp_path / "page.html"),
        ("verify", emb),
        ("index", emb, "--type", "flat"),
        ("search", emb, "--key", "00003"),
        ("dedup", emb, tmp_path / "dedup"),
        ("filter", emb, tmp_path / "kept", "--min-similarity", "-1", "--materialise"),
        ("export", emb, tmp_path / "export", "--to", "parquet"),
    ):
        done = embedpipe(*command)
        assert done.exit_code == 0, (command, done.stderr)
