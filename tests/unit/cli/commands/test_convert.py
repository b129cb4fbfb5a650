"""embedpipe convert"""

import json

import pytest
import torch
from click.testing import CliRunner
from embedpipe_cli.main import cli
from safetensors.torch import load_file

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
    result = convert(
        peer_priors / "1.15.6-self-cond.pt", tmp_path / "prior", "--self-cond", "--predicts", "v", "--dry-run"
    )
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


def diffusers_folder(folder):
    """A tiny prior of diffusers, its weights random."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "embedding_dim": 16,
        "num_embeddings": 77,
    }
    diffusers.PriorTransformer(**sizes).save_pretrained(folder / "prior")
    diffusers.UnCLIPScheduler(clip_sample_range=5.0, prediction_type="sample").save_pretrained(folder / "scheduler")
    return folder


def test_a_folder_of_diffusers_becomes_a_prior_and_goes_back(tmp_path):
    theirs = diffusers_folder(tmp_path / "theirs")
    result = convert(theirs, tmp_path / "prior")
    assert result.exit_code == 0, result.output
    assert "unclip prior of" in result.output
    assert "1 layers of 2 heads, for embeddings of 16 values" in result.output
    assert load_prior(tmp_path / "prior").config.clip_sample_range == 5.0
    back = convert(tmp_path / "prior", tmp_path / "back", "--to", "diffusers", "--json")
    assert back.exit_code == 0, back.output
    assert json.loads(back.output)["network"]["num_attention_heads"] == 2
    one, other = (it / "prior" / "diffusion_pytorch_model.safetensors" for it in (theirs, tmp_path / "back"))
    assert load_file(one).keys() == load_file(other).keys()
    assert all(torch.equal(it, load_file(other)[name]) for name, it in load_file(one).items())
    assert "holds a model already" in str(convert(theirs, tmp_path / "prior").exception)
    assert "holds a model already" in str(convert(tmp_path / "prior", tmp_path / "back", "--to", "diffusers").exception)
    assert "options that describe a checkpoint" in str(convert(theirs, tmp_path / "other", "--timesteps", 9).exception)


def test_only_an_unclip_prior_goes_to_diffusers(tmp_path, peer_priors):
    convert(peer_priors / "1.1.0-text.pt", tmp_path / "prior")
    result = convert(tmp_path / "prior", tmp_path / "back", "--to", "diffusers")
    assert "holds a diffusion-prior; diffusers has a class for unclip priors only" in str(result.exception)
