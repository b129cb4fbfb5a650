"""train-prior --from: a trained prior, or one of diffusers, goes on learning from stored embeddings."""

import json
import shutil

import numpy as np
import pytest
import torch

from dalle2_core.errors import ConfigError
from dalle2_core.priors.diffusers_folder import write_diffusers_prior
from dalle2_core.priors.registry import load_prior
from dalle2_core.priors.unclip import UnclipConfig, UnclipPrior
from embedpipe import EmbeddingDataset
from embedpipe.errors import DatasetError, InputError, OptionError, RunMismatch
from tests.commands import result_of, run
from tests.embeddings import write_dataset

DIM = 16
WORDS = ["--device", "cpu", "--split-column", "split", "--set", "train.steps=40", "--set", "train.batch_size=32",
         "--set", "train.evaluate_every=20", "--set", "train.save_every=10", "--set", "optim.lr=2e-3",
         "--set", "optim.warmup_steps=2", "--set", "optim.schedule=constant"]  # fmt: skip


def written(folder, norms=True, dim=DIM, rows=240):
    """Rows whose image is a rotation of their text; norms as a tower has them."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(rows, dim))
    rotation, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    columns = {"split": ["valid" if row % 8 == 0 else "train" for row in range(rows)]}
    if norms:
        columns |= {name: ("float", rng.uniform(8, 12, rows).tolist()) for name in ("image_norm", "text_norm")}
    return write_dataset(folder, text @ rotation, text, 3, columns)


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    return written(tmp_path_factory.mktemp("emb") / "emb")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny prior of diffusers that reads no text states, its scheduler beside it."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, embedding_dim=DIM, num_embeddings=0,
        encoder_hid_proj_type=None,
    )  # fmt: skip
    torch.nn.init.constant_(model.clip_std, 2.5)
    model.save_pretrained(folder / "prior")
    diffusers.UnCLIPScheduler(clip_sample_range=10.0, prediction_type="sample").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def tuned(emb, theirs, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "prior"
    outcome = result_of("train-prior", emb, out, *WORDS, "--from", f"diffusers:{theirs}")
    assert outcome["prior"] == "unclip"
    return out


def test_a_prior_of_diffusers_learns_from_raw_embeddings(emb, theirs, tuned):
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("kind") == "valid" or "cosine_image" in line]
    assert losses[-1] < losses[0]
    prior = load_prior(tuned)
    assert prior.raw
    assert torch.equal(prior.net.clip_std, torch.full((1, DIM), 2.5)), "its scaling stays"
    facts = json.loads((tuned / "run.json").read_text())
    assert facts["start"]["place"] == f"diffusers:{theirs}"
    # What it learnt is the rotation of raw texts, which are some ten times as long as stored ones.
    data = EmbeddingDataset(emb)
    text = torch.from_numpy(data.text.raw()[:64])
    found = prior.sample(text, generator=torch.Generator().manual_seed(0))
    cosine = (found * torch.from_numpy(np.asarray(data.image[:64], np.float32))).sum(dim=1).mean()
    short = prior.sample(text / 10, generator=torch.Generator().manual_seed(0))
    other = (short * torch.from_numpy(np.asarray(data.image[:64], np.float32))).sum(dim=1).mean()
    assert cosine > other


def test_one_of_diffusers_that_was_never_trained_is_scaled_by_the_data(emb, theirs, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.PriorTransformer.from_pretrained(theirs / "prior")
    torch.nn.init.zeros_(model.clip_std)
    model.save_pretrained(tmp_path / "new")
    outcome = result_of("train-prior", emb, tmp_path / "prior", *WORDS, "--from", f"diffusers:{tmp_path / 'new'}")
    assert np.isfinite(outcome["metrics"]["loss"])
    assert 1 < float(load_prior(tmp_path / "prior").net.clip_std.mean()) < 4


def test_run_again_it_goes_on_to_the_same_bits(emb, theirs, tuned, tmp_path):
    half = [*WORDS]
    half[half.index("train.steps=40")] = "train.steps=20"
    result_of("train-prior", emb, tmp_path / "prior", *half, "--from", f"diffusers:{theirs}")
    result_of("train-prior", emb, tmp_path / "prior", *WORDS, "--from", f"diffusers:{theirs}")
    one, other = load_prior(tuned).state_dict(), load_prior(tmp_path / "prior").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_other_commands_take_it(emb, tuned, tmp_path):
    rows = {row["predictor"]: row for row in result_of("evaluate", tuned, emb, "--device", "cpu")["rows"]}
    assert rows["prior"]["cosine_image"] > rows["text"]["cosine_image"] - 0.2
    result_of("sample-prior", emb, tmp_path / "predicted", "--prior", tuned, "--gpus", 0)
    predicted = EmbeddingDataset(str(tmp_path / "predicted"))
    assert predicted.image.raw().norms([0, 1]).min() > 1.5, "raw, as the decoders of diffusers take them"
    back = run("convert", tuned, tmp_path / "back", "--to", "diffusers")
    assert back.exit_code == 0, back.output


def test_a_prior_of_one_pass_goes_on_by_contrast(emb, tmp_path):
    """ECLIPSE's: its own objective is an option of a training that begins with one."""
    torch.manual_seed(0)
    config = UnclipConfig(num_layers=1, num_attention_heads=2, attention_head_dim=8, reads_time=False, raw=True,
                          clip_sample_range=None, cond_drop_prob=0.0)  # fmt: skip
    write_diffusers_prior(UnclipPrior(config.network(DIM), config), tmp_path / "theirs")
    begin = ["train-prior", emb, tmp_path / "prior", *WORDS, "--from", f"diffusers:{tmp_path / 'theirs'}"]
    result_of(*begin, "--set", "unclip.contrastive_weight=0.2", "--set", "unclip.contrastive_temperature=0.1")
    lines = [json.loads(line) for line in (tmp_path / "prior" / "metrics.jsonl").read_text().splitlines()]
    contrast = [line["contrast"] for line in lines if "contrast" in line]
    assert contrast
    assert load_prior(tmp_path / "prior").compares_rows


def test_one_of_many_passes_does_not(emb, theirs, tmp_path):
    for begin in (["--from", f"diffusers:{theirs}"], ["--prior", "unclip"]):
        refused = run("train-prior", emb, tmp_path / "out", *WORDS, *begin, "--set", "unclip.contrastive_weight=0.2")
        assert isinstance(refused.exception, ConfigError)
        assert "for a network that predicts in one pass" in str(refused.exception)


def test_a_run_of_ours_goes_on_in_another_folder(emb, tmp_path):
    small = [*WORDS, "--set", "network.dim=16", "--set", "network.depth=1", "--set", "diffusion.timesteps=10"]
    small += ["--set", "diffusion.sample_timesteps=4"]
    result_of("train-prior", emb, tmp_path / "first", *small)
    outcome = result_of("train-prior", emb, tmp_path / "second", *small, "--from", tmp_path / "first")
    assert outcome["prior"] == "diffusion"
    assert load_prior(tmp_path / "second").net.config == load_prior(tmp_path / "first").net.config


def test_settings_of_what_is_learnt_are_those_of_the_new_run_and_others_are_refused(emb, theirs, tuned, tmp_path):
    begin = ["train-prior", emb, tmp_path / "prior", *WORDS, "--from", f"diffusers:{theirs}"]
    result_of(*begin, "--set", "unclip.loss_type=l1", "--set", "unclip.cond_drop_prob=0.3")
    found, usual = load_prior(tmp_path / "prior"), load_prior(tuned)
    assert (found.config.loss_type, found.config.cond_drop_prob) == ("l1", 0.3)
    assert any(not torch.equal(it, usual.state_dict()[name]) for name, it in found.state_dict().items())
    for setting in ("unclip.timesteps=50", "unclip.num_layers=4", "unclip.raw=false"):
        refused = run(*begin, "--set", setting)
        assert isinstance(refused.exception, OptionError), setting
        assert f"its {setting.partition('=')[0]} is " in str(refused.exception)


def test_a_run_that_was_begun_with_another_goes_on_without_that_ones_checkpoints(emb, theirs, tmp_path):
    result_of("train-prior", emb, tmp_path / "first", *WORDS, "--from", f"diffusers:{theirs}")
    words = ["train-prior", emb, tmp_path / "second", *WORDS, "--from", tmp_path / "first"]
    result_of(*words)
    shutil.rmtree(tmp_path / "first" / "checkpoints")
    result_of(*words)


def test_a_converted_prior_is_not_trained_in_its_own_folder(emb, theirs, tmp_path):
    result_of("convert", theirs, tmp_path / "prior", "--for", emb)
    for words in ([], ["--prior", "ridge"], ["--from", tmp_path / "prior"]):
        refused = run("train-prior", emb, tmp_path / "prior", *WORDS, *words)
        assert isinstance(refused.exception, RunMismatch)
        assert "holds a converted prior" in str(refused.exception)


def test_what_does_not_go_together_is_said(emb, theirs, tuned, tmp_path):
    begin = ["--from", f"diffusers:{theirs}"]
    other = written(tmp_path / "narrow", dim=8)
    refused = run("train-prior", other, tmp_path / "out", *WORDS, *begin)
    assert isinstance(refused.exception, InputError)
    assert "for embeddings of 16 values, and" in str(refused.exception)
    without = written(tmp_path / "without", norms=False)
    refused = run("train-prior", without, tmp_path / "out", *WORDS, *begin)
    assert isinstance(refused.exception, DatasetError)
    assert "was written without norms" in str(refused.exception)
    refused = run("train-prior", emb, tmp_path / "out", *WORDS, *begin, "--prior", "diffusion")
    assert isinstance(refused.exception, OptionError)
    assert "holds a prior of the kind unclip, not diffusion" in str(refused.exception)
    refused = run("train-prior", emb, tmp_path / "out", *begin, "--prior", "all")
    assert "--from is for one prior" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    refused = run("train-prior", emb, tuned, *WORDS)  # another beginning, or none
    assert refused.exit_code != 0
