"""embedpipe convert"""

import json

import pytest
from click.testing import CliRunner
from embedpipe_cli.main import cli

from dalle2_core import load_prior
from dalle2_core.errors import CheckpointError


def convert(*words):
    return CliRunner().invoke(cli, ["convert", *map(str, words)], catch_exceptions=True)


def test_a_checkpoint_becomes_a_prior_and_what_was_assumed_is_said(peer_priors, tmp_path):
    result = convert(peer_priors / "1.1.0-text.pt", tmp_path / "prior")
    assert result.exit_code == 0
    assert "16 wide, 2 layers, 2 heads, 12 timesteps (cosine)" in result.output
    assert "read as those of DALLE2-pytorch 0.23.3" in result.output
    assert "assumed: predicts: x0" in result.output
    assert load_prior(tmp_path / "prior").net.config.max_text_len == 6
    again = convert(peer_priors / "1.1.0-text.pt", tmp_path / "prior")
    assert isinstance(again.exception, CheckpointError)
    assert "holds a model already; name another folder" in str(again.exception)


def test_dry_run_and_json(peer_priors, tmp_path):
    result = convert(peer_priors / "1.15.6-self-cond.pt", tmp_path / "prior", "--self-cond", "--predicts", "v", "-n")
    assert "(nothing written)" in result.output
    assert not (tmp_path / "prior").exists()
    said = json.loads(convert(peer_priors / "1.15.6-trainer.pt", tmp_path / "prior", "--json").output)
    assert said["weights"] == "ema"
    assert said["network"]["dim"] == 8
    assert said == {
        k: v for k, v in json.loads((tmp_path / "prior" / "conversion.json").read_text()).items() if k in said
    }


def test_for_a_data_set_the_other_commands_take_it(peer_priors, tmp_path, encoded_once, embedpipe):
    emb = encoded_once[1]
    convert(peer_priors / "1.1.0-default.pt", tmp_path / "prior", "--for", emb)
    scores = embedpipe("evaluate", tmp_path / "prior", emb, "--split", "train", "--json")
    assert scores.exit_code == 0, scores.output
    assert "ridge" in scores.stdout
    made = embedpipe("sample-prior", emb, tmp_path / "predicted", "--prior", tmp_path / "prior", "--gpus", 0)
    assert made.exit_code == 0, made.output
    refused = embedpipe("convert", peer_priors / "1.15.6-trainer.pt", tmp_path / "other", "--for", emb)
    assert refused.exit_code == 1
    assert "embeddings of 16 dimensions, but the prior is for 8" in refused.output
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("words", [["--predicts", "eps"], ["--timesteps", "1"], ["--weights", "best"]])
def test_usage(peer_priors, tmp_path, words):
    assert convert(peer_priors / "1.1.0-text.pt", tmp_path / "prior", *words).exit_code == 2
