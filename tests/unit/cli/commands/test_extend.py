"""A run goes on with more steps, or with more rows; this is said, recorded, and what `--dry-run` says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedpipe.encode.job import encode
from embedpipe.load import EmbeddingDataset, splits
from embedpipe.load.identity import row_marks
from embedpipe.merge import merge
from tests import shards
from tests.commands import result_of, run
from tests.embeddings import write_dataset

SMALL = [
    *(
        "--set",
        "train.batch_size=16",
        "--set",
        "network.dim=16",
        "--set",
        "network.depth=1",
        "--set",
        "network.heads=2",
    ),
    *("--set", "network.dim_head=8", "--set", "diffusion.timesteps=10", "--set", "diffusion.sample_timesteps=3"),
    *("--set", "train.evaluate_every=4", "--valid-share", "0.2", "--device", "cpu"),
]
CONSTANT = ["--set", "optim.schedule=constant", "--set", "optim.warmup_steps=3"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)


def write(folder, rows=200, seed=0, names=None):
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(rows, 8))
    hashes = [f"{seed:032x}{row:032x}" for row in range(rows)]
    return write_dataset(folder, text + 0.3 * rng.normal(size=(rows, 8)), text, names=names, sha256=hashes)


@pytest.fixture
def grown(tmp_path):
    """A data set, and the same with more rows, in the place of the first."""
    parts = [write(tmp_path / "a"), write(tmp_path / "b", 120, 1, ["x.tar", "y.tar"])]
    path = tmp_path / "emb"
    shutil.copytree(parts[0], path)

    def grow():
        shutil.rmtree(path)
        merge(parts, str(path))

    return str(path), grow


def train(*words):
    return run("train-prior", *words)


def weights(out):
    return (Path(out) / "model.safetensors").read_bytes()


def test_more_steps_at_a_constant_rate_are_one_longer_run_bit_for_bit(tmp_path):
    emb, out = write(tmp_path / "emb"), tmp_path / "out"
    assert train(emb, out, *SMALL, *CONSTANT, "--steps", "6").exit_code == 0
    plan = result_of("train-prior", emb, out, *SMALL, *CONSTANT, "--steps", "13", "--dry-run")["plan"]
    assert plan["runs"][str(out)] == {"steps": 13, "done": 6, "left": 7}
    assert plan["extended"][str(out)] == [
        "6 → 13 steps, from step 6 on, at the same constant rate: as one run of that length"
    ]
    assert train(emb, out, *SMALL, *CONSTANT, "--steps", "13").exit_code == 0
    assert train(emb, tmp_path / "long", *SMALL, *CONSTANT, "--steps", "13").exit_code == 0
    newest = "checkpoints/step-000000013"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (out / newest / name).read_bytes() == (tmp_path / "long" / newest / name).read_bytes()
    assert json.loads((out / "run.json").read_text())["history"] == [{"step": 6, "changes": ["train.steps: 6 → 13"]}]
    assert json.loads((tmp_path / "long" / "run.json").read_text())["history"] == []
    before = weights(out)
    again = train(emb, out, *SMALL, *CONSTANT, "--steps", "13")
    assert again.exit_code == 0
    assert "nothing is left to train" in again.stderr
    assert weights(out) == before
    assert "6 → 13" in run("info", out).stdout


def test_a_schedule_that_ends_is_stretched_and_that_is_said(tmp_path, caplog):
    emb, out = write(tmp_path / "emb"), tmp_path / "out"
    assert train(emb, out, *SMALL, "--set", "optim.warmup_steps=2", "--steps", "6").exit_code == 0
    words = [emb, out, *SMALL, "--set", "optim.warmup_steps=2", "--steps"]
    (said,) = result_of("train-prior", *words, "12", "--dry-run")["plan"]["extended"][str(out)]
    assert "the cosine schedule is that of 12 steps from here on, so the rate goes from 0 to" in said
    assert train(*words, "12").exit_code == 0
    assert said in caplog.text
    history = json.loads((out / "run.json").read_text())["history"]
    assert history == [{"step": 6, "changes": ["train.steps: 6 → 12"]}]
    rates = {it["step"]: it.get("learning_rate") for it in map(json.loads, (out / "metrics.jsonl").open())}
    assert max(rates) == 12
    for steps in ("6", "9"):
        for dry in ([], ["--dry-run"]):
            assert f"train.steps was 12, now {steps}" in str(train(*words, steps, *dry).exception)


def test_data_that_grew_are_trained_on_and_held_out_rows_stay_held_out(tmp_path, grown, caplog):
    emb, grow = grown
    out = tmp_path / "out"
    words = [emb, out, *SMALL, *CONSTANT, "--steps"]
    assert train(*words, "6").exit_code == 0
    before = EmbeddingDataset(emb)
    held = {row["sha256"] for row in before.rows(np.flatnonzero(splits(before, None, 0.2) == "valid").tolist())}
    count = json.loads((out / "run.json").read_text())["train_rows"]
    grow()
    for dry in ([], ["--dry-run"]):
        assert "all 6 steps were done, and the data have grown since" in str(train(*words, "6", *dry).exception)
    now = EmbeddingDataset(emb)
    assert held <= {row["sha256"] for row in now.rows(np.flatnonzero(splits(now, None, 0.2) == "valid").tolist())}
    said = result_of("train-prior", *words, "10", "--dry-run")["plan"]["extended"][str(out)]
    assert train(*words, "10").exit_code == 0
    facts = json.loads((out / "run.json").read_text())
    assert facts["train_rows"] > count
    assert said[-1] == f"{count:,} → {facts['train_rows']:,} training rows; held-out rows stay held out"
    assert said[-1] in caplog.text
    (change,) = facts["history"]
    assert change["step"] == 6
    assert set(change["changes"]) == {"train.steps: 6 → 10", f"train_rows: {count} → {facts['train_rows']}"}
    assert train(*words, "10").exit_code == 0
    assert result_of("evaluate", out, emb, "--device", "cpu")["rows"][0]["n"] == facts["valid_rows"]


def test_rows_that_are_gone_or_other_settings_are_refused(tmp_path):
    emb, out = tmp_path / "emb", tmp_path / "out"
    write(emb)
    words = ["train-prior", emb, out, *SMALL, *CONSTANT]
    assert run(*words, "--steps", "6").exit_code == 0
    for dry in ([], ["--dry-run"]):
        assert "optim.lr was" in str(run(*words, "--steps", "9", "--set", "optim.lr=1", *dry).exception)
        assert "train.seed was 0, now 5" in str(run(*words, "--steps", "9", "--seed", "5", *dry).exception)
    shutil.rmtree(emb)
    write(emb, 240, seed=9)  # more rows, and none of those it was trained on
    for dry in ([], ["--dry-run"]):
        assert "the number of training rows was" in str(run(*words, "--steps", "9", *dry).exception)
    shutil.rmtree(emb)
    write(emb, 150)
    assert "the number of training rows was" in str(run(*words, "--steps", "9").exception)


def test_a_prior_in_closed_form_is_fitted_again_when_its_data_grew(tmp_path, grown):
    emb, grow = grown
    words = [emb, tmp_path / "out", "--prior", "ridge", "--valid-share", "0.2"]
    assert train(*words).exit_code == 0
    before = weights(tmp_path / "out")
    assert train(*words).exit_code == 0
    assert weights(tmp_path / "out") == before
    grow()
    assert train(*words).exit_code == 0
    assert weights(tmp_path / "out") != before
    (change,) = json.loads((tmp_path / "out" / "run.json").read_text())["history"]
    assert change["changes"][0].startswith("train_rows: ")


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("settings", "more", "dies_at"),
    [
        ([*SMALL, *CONSTANT, "--steps", "6"], ["--steps", "10"], "_learn"),
        (["--prior", "ridge", "--valid-share", "0.2"], [], "write_run_record"),
    ],
)
def test_an_extension_that_is_killed_before_anything_was_learnt_is_made_again(
    tmp_path, grown, monkeypatch, settings, more, dies_at
):
    emb, grow = grown
    out = tmp_path / "out"
    words = [emb, out, *settings]
    assert train(*words).exit_code == 0
    grow()

    def dies(*arguments, **keywords):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(f"embedpipe.unclip.train.prior.{dies_at}", dies)
        assert isinstance(train(*words, *more).exception, Killed)
    again = train(*words, *more)
    assert again.exit_code == 0, again.exception
    dataset = EmbeddingDataset(emb)
    trained = row_marks(dataset, np.flatnonzero(splits(dataset, None, 0.2) == "train"))
    assert np.array_equal(np.load(out / "train_rows.npy"), np.unique(trained))
    assert json.loads((out / "run.json").read_text())["history"]


def test_an_autoencoder_goes_on_with_more_steps_and_more_pictures(tmp_path):
    from tests.unit.cli.commands.test_train_vae import SMALL as vae

    source = shards.write_shards(tmp_path / "in", shards=3)
    words = ["train-vae", source, tmp_path / "out", *vae, "--valid-share", "0.3", "--device", "cpu", "--steps"]
    first = run(*words, "3")
    assert first.exit_code == 0, first.exception
    shards.write_tar(tmp_path / "in" / "00003.tar", shards.samples(9, first=60))
    for dry in ([], ["--dry-run"]):
        assert "all 3 steps were done" in str(run(*words, "3", *dry).exception)
    plan = result_of(*words, "5", "--dry-run")["plan"]
    assert any("held-out rows stay held out" in said for said in plan["extended"][str(tmp_path / "out")])
    assert run(*words, "5").exit_code == 0
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["history"][0]["step"] == 3
    assert plan["splits"]["train"] == facts["train_rows"]


@pytest.mark.slow
def test_a_clip_goes_on_with_more_steps_and_more_pairs(tmp_path):
    from tests.unit.cli.commands.test_train_clip import TINY as clip

    source = shards.write_shards(tmp_path / "in", shards=4, per_shard=10)
    words = ["train-clip", source, tmp_path / "out", *clip, "--steps"]
    first = run(*words, "2")
    assert first.exit_code == 0, first.exception
    shards.write_tar(tmp_path / "in" / "00004.tar", shards.samples(9, first=60))
    assert "all 2 steps were done" in str(run(*words, "2", "--dry-run").exception)
    said = result_of(*words, "4", "--dry-run")["plan"]["extended"][str(tmp_path / "out")]
    assert len(said) == 2
    assert run(*words, "4").exit_code == 0
    (change,) = json.loads((tmp_path / "out" / "run.json").read_text())["history"]
    assert change["step"] == 2
    assert any(it.startswith("pictures: ") for it in change["changes"])


def test_a_decoder_goes_on_with_more_steps_and_more_rows(tmp_path, encode_config):
    from tests.unit.cli.commands.test_train_decoder import SMALL as decoder

    source, emb = shards.write_shards(tmp_path / "in", shards=3), str(tmp_path / "emb")
    encode(source, emb, encode_config())
    words = ["train-decoder", emb, tmp_path / "out", *decoder, "--valid-share", "0.3", "--device", "cpu", "--steps"]
    first = run(*words, "2")
    assert first.exit_code == 0, first.exception
    shards.write_tar(tmp_path / "in" / "00003.tar", shards.samples(9, first=60))
    encode(source, emb, encode_config())
    assert "all 2 steps were done" in str(run(*words, "2").exception)
    plan = result_of(*words, "3", "--dry-run")["plan"]
    assert all("held-out rows stay held out" in said[-1] for said in plan["extended"].values())
    assert run(*words, "3").exit_code == 0
    facts = json.loads((tmp_path / "out" / "stage-1" / "run.json").read_text())
    assert any(it.startswith("order_sha256") for it in facts["history"][0]["changes"])
