"""A prior that reads the captions' tokens: from encode to evaluate, in both storage formats."""

import json
import shutil

import numpy as np
import pytest

from embedpipe.encode.job import encode
from embedpipe.load import EmbeddingDataset, EmbeddingLoader
from embedpipe.unclip.data import prior_batches
from embedpipe.unclip.data.token_states import token_states
from tests import shards

SETTINGS = {
    "text_tokens": "true",
    "train.steps": 12,
    "train.batch_size": 8,
    "train.evaluate_every": 6,
    "train.save_every": 6,
    "network.dim": 32,
    "network.depth": 1,
    "diffusion.timesteps": 10,
    "diffusion.sample_timesteps": 2,
}


def settings(**changes):
    return [word for name, value in {**SETTINGS, **changes}.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def data(tmp_path_factory, encode_config):
    """Format → data set with text tokens."""
    root = tmp_path_factory.mktemp("tokens")
    source = shards.write_shards(root / "shards", shards=2, per_shard=30)
    for name in ("npy", "parquet"):
        encode(source, str(root / name), encode_config(format=name, stage={"text_tokens": True}))
    return {name: str(root / name) for name in ("npy", "parquet")}


def test_it_trains_and_is_evaluated_alike_on_both_formats(data, tmp_path, embedpipe, monkeypatch):
    monkeypatch.setattr(prior_batches, "_ROWS_WITH_TOKENS", 3)
    told = []
    for name, emb in data.items():
        out = tmp_path / name
        trained = embedpipe("train-prior", emb, out, *settings(), "--valid-share", 0.2, "--device", "cpu")
        assert trained.exit_code == 0, trained.stderr
        scores = embedpipe("evaluate", out, emb, "--device", "cpu", "--json")
        assert scores.exit_code == 0, scores.stderr
        told.append(json.loads(scores.stdout))
        again = embedpipe("train-prior", emb, out, *settings(text_tokens="false"), "--valid-share", 0.2)
        assert again.exit_code == 1, "a run with tokens is not one without"
        assert "text_tokens" in again.stderr
    assert told[0] == told[1]


def test_batches_hold_the_tokens_of_their_rows(data):
    dataset = EmbeddingDataset(data["npy"])
    rows = np.arange(3, 53, 2)
    for batch in (next(EmbeddingLoader(dataset, rows, 7, 1, text_tokens=True).batches(step)) for step in range(9)):
        assert batch.text_tokens.dtype == np.float32
        assert batch.text_tokens.shape[:2] == batch.text_mask.shape
        for text, states, mask in zip(batch.text, batch.text_tokens, batch.text_mask, strict=True):
            like = [row for row in rows if np.array_equal(dataset.text[row], text)]
            assert any(np.array_equal(dataset.text_tokens[row], states[mask]) for row in like)
            assert not states[~mask].any()
    assert next(EmbeddingLoader(dataset, rows, 7, 1).batches()).text_tokens is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network.dim": 16}, "text tokens are 32 wide, but network.dim is 16. Give --set network.dim=32"),
        ({"network.max_text_len": 5}, "but network.max_text_len is 5"),
    ],
)
def test_a_network_they_do_not_fit_is_refused_before_training(changes, said, data, tmp_path, embedpipe):
    result = embedpipe("train-prior", data["npy"], tmp_path / "out", *settings(**changes), "--device", "cpu")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_where_neither_they_nor_the_model_are_it_says_how_to_get_them(tmp_path, encode_config, tiny_model, embedpipe):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    source = shards.write_shards(tmp_path / "shards", shards=1, per_shard=9)
    encode(source, str(tmp_path / "emb"), encode_config(model=str(model)))
    shutil.rmtree(model)
    result = embedpipe("train-prior", tmp_path / "emb", tmp_path / "out", *settings(), "--valid-share", 0.4)
    assert result.exit_code == 1
    assert "holds no text tokens, and its model makes none" in result.stderr
    assert "Encode it again with `embedpipe encode --text-tokens`" in result.stderr


def test_without_stored_tokens_the_text_tower_makes_the_same_ones(tmp_path, data, encode_config, embedpipe, capsys):
    bare = tmp_path / "bare"
    encode(EmbeddingDataset(data["npy"]).run.source, str(bare), encode_config())
    told = []
    for emb in (data["npy"], bare):
        out = tmp_path / f"prior-{len(told)}"
        words = ("train-prior", emb, out, *settings(**{"network.max_text_len": 77}), "--valid-share", 0.2)
        trained = embedpipe(*words, "--device", "cpu")
        assert trained.exit_code == 0, trained.stderr
        assert ("its text tower makes them anew" in trained.stderr) is (emb == bare)
        scores = embedpipe("evaluate", out, emb, "--device", "cpu", "--json")
        told.append(json.loads(scores.stdout)["rows"])
    for stored, made in zip(*told, strict=True):
        assert made == pytest.approx(stored, abs=1e-3)
    capsys.readouterr()
    assert token_states(EmbeddingDataset(str(bare)), "cpu", speaks=False).width == 32
    assert capsys.readouterr().err == "", "of several processes one says it"
