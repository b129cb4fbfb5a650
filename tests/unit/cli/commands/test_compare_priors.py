"""Any prior trains by its name, several are compared in one table, and rows that no prior should see are dealt with."""

import json
import math

import numpy as np
import pytest
import torch

from dalle2_core.errors import NonFiniteLoss
from dalle2_core.presets.prior import prior_preset
from dalle2_core.priors.registry import PRIORS, load_prior
from dalle2_core.types import PriorBatch
from embedpipe.errors import DatasetError, RunMismatch
from embedpipe.unclip.data import prior_batches, row_policy
from embedpipe.unclip.data.row_policy import RowPolicy
from embedpipe.unclip.evaluate.priors import evaluate_priors, predict
from embedpipe.unclip.train import prior as wiring
from tests import shards
from tests.commands import result_of, run
from tests.embeddings import write_dataset

SETTINGS = {
    "train.steps": 6,
    "train.batch_size": 16,
    "train.evaluate_every": 3,
    "train.save_every": 3,
    "network.dim": 16,
    "network.depth": 1,
    "network.heads": 2,
    "network.dim_head": 8,
    "diffusion.timesteps": 10,
    "diffusion.sample_timesteps": 3,
}
SMALL = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)


def pairs(n=200, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(n, dim))
    return text @ np.linalg.qr(rng.normal(size=(dim, dim)))[0] + 0.3 * rng.normal(size=(n, dim)), text


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    split = ["valid" if row % 5 == 0 else "train" for row in range(200)]
    return write_dataset(tmp_path_factory.mktemp("emb") / "emb", *pairs(), columns={"split": split})


def train(emb, out, *more):
    return run("train-prior", emb, out, *SMALL, "--split-column", "split", "--device", "cpu", *more)


def test_all_priors_are_trained_and_compared_in_one_command(emb, tmp_path):
    outcome = train(emb, tmp_path, "--prior", "all")
    assert outcome.exception is None, outcome.exception
    assert {it.name for it in tmp_path.iterdir()} == set(PRIORS)
    assert all(name in outcome.stdout for name in PRIORS)
    assert "40 held-out rows" in outcome.stdout
    for name in PRIORS:
        assert type(load_prior(tmp_path / name)) is PRIORS[name]
        assert json.loads((tmp_path / name / "run.json").read_text())["recipe"]["prior"] == name
    # The same table from the folders, the ridge that was kept being the one that is fitted on the spot.
    found = result_of("evaluate", tmp_path / "diffusion", tmp_path / "ridge", emb, "--device", "cpu")
    rows = {row["predictor"]: row for row in found["rows"]}
    assert set(rows) == {"diffusion", "ridge", "text", "mean"}
    assert rows["ridge"]["cosine_image"] > rows["mean"]["cosine_image"]
    rounded = result_of("evaluate", tmp_path / "diffusion", emb, "--device", "cpu", "--precision", "bfloat16")
    (other,) = (row["cosine_image"] for row in rounded["rows"] if row["predictor"] not in ("text", "mean", "ridge"))
    assert 0 < abs(other - rows["diffusion"]["cosine_image"]) < 1e-2


def test_without_a_run_the_closed_forms_are_compared(tmp_path):
    emb = write_dataset(tmp_path / "emb", *pairs(400))
    found = result_of("evaluate", emb, "--device", "cpu")
    assert {row["predictor"] for row in found["rows"]} == {"text", "mean", "ridge"}


def test_runs_that_held_out_different_rows_are_not_compared(emb, tmp_path):
    assert train(emb, tmp_path / "one", "--prior", "ridge").exception is None
    outcome = run("train-prior", emb, tmp_path / "two", "--prior", "ridge", *SMALL, "--valid-share", 0.3)
    assert outcome.exception is None
    with pytest.raises(RunMismatch, match="what one held out, the other may have seen"):
        evaluate_priors([str(tmp_path / "one"), str(tmp_path / "two")], emb, "valid", "cpu")


def test_a_folder_keeps_to_its_prior(emb, tmp_path):
    assert train(emb, tmp_path / "out", "--prior", "ridge").exception is None
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert train(emb, tmp_path / "out", "--prior", "ridge").exception is None
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    for name in ("mean", "diffusion"):
        assert 'prior was "ridge"' in str(train(emb, tmp_path / "out", "--prior", name).exception)
    message = str(train(emb, tmp_path / "other", "--prior", "rigde").exception)
    assert "no prior 'rigde'. Did you mean ridge?" in message


def test_what_is_drawn_for_a_row_does_not_depend_on_the_batches():
    torch.manual_seed(0)
    prior = prior_preset("tiny").build(8).eval()
    text = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    whole = predict(prior, [PriorBatch(text, text)], 0, "cpu")
    parts = predict(prior, [PriorBatch(text[a:b], text[a:b]) for a, b in ((0, 7), (7, 30), (30, 50))], 0, "cpu")
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, predict(prior, [PriorBatch(text, text)], 1, "cpu"), atol=1e-3)


def damage(folder, side, rows, value):
    path = folder / f"{side}_emb" / f"{side}_emb_00000.npy"
    array = np.load(path)
    array[rows] = array[rows] * value
    np.save(path, array)
    shards.record_anew(folder, 0, path)


@pytest.fixture
def damaged(tmp_path):
    """100 rows: two of norm 3 on the image side, one NaN and one of zeros on the text side."""
    folder = tmp_path / "damaged"
    write_dataset(folder, *pairs(100), shards=1)
    damage(folder, "img", [1, 2], 3)
    damage(folder, "text", [5], math.nan)
    damage(folder, "text", [6], 0)
    return str(folder)


def test_bad_rows_are_counted_and_the_options_that_accept_them_named(damaged, tmp_path):
    words = ["train-prior", damaged, tmp_path / "out", *SMALL, "--device", "cpu"]
    outcome = run(*words)
    assert "2 text rows hold NaN or infinity, or zeros alone" in str(outcome.exception)
    assert "`drop_nonfinite=True`" in str(outcome.exception)
    outcome = run(*words, "--drop-nonfinite")
    assert "2 image rows are not of norm 1 (norms from 3 to 3)" in str(outcome.exception)
    assert "`normalise=True`" in str(outcome.exception)
    outcome = run(*words, "--drop-nonfinite", "--normalise", "--json")
    done = json.loads(outcome.stdout)
    assert (done["dropped"], done["train_rows"] + done["valid_rows"]) == (2, 98)
    assert all(math.isfinite(it) for it in done["metrics"].values())
    # The run remembers how its rows were taken.
    found = result_of("evaluate", tmp_path / "out", damaged, "--device", "cpu")
    assert found["rows"][0]["n"] == done["valid_rows"]


def test_data_too_large_to_scan_is_checked_batch_by_batch(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(row_policy, "_MOST_BYTES_TO_SCAN", 100)
    seen = prior_batches.open_rows(damaged, prior_preset("tiny"), RowPolicy(), "cpu")
    assert len(seen.checked(np.arange(100))) == 100
    with pytest.raises(DatasetError, match="1 text rows hold NaN"):
        seen.pairs(np.arange(5, 6))
    with pytest.raises(DatasetError, match="2 image rows are not of norm 1"):
        seen.pairs(np.arange(5))
    assert len(seen.pairs(np.arange(10, 20))[0]) == 10


def test_the_rows_of_a_batch_whose_loss_is_nan_are_named(emb, tmp_path, monkeypatch):
    recipe = prior_preset("tiny")
    from dalle2_core.priors import diffusion as models

    steps = []
    loss = models.DiffusionPrior.loss

    def breaking(self, batch, draws):
        if self.training:
            steps.append(batch)
        found = loss(self, batch, draws)
        return type(found)(found.loss * (math.nan if len(steps) == 3 else 1.0))

    monkeypatch.setattr(models.DiffusionPrior, "loss", breaking)
    with pytest.raises(NonFiniteLoss, match=r"step 3, samples 257 to 384: .*nonfinite_batch\.json"):
        wiring.train_prior(emb, str(tmp_path / "out"), preset=recipe, split_column="split", device="cpu")
    named = json.loads((tmp_path / "out" / "nonfinite_batch.json").read_text())
    assert named["step"] == 3
    from embedpipe import EmbeddingDataset

    data = EmbeddingDataset(emb)
    rows = [row["row"] for row in named["rows"]]
    assert len(rows) == 128
    assert np.allclose(data.text[rows].astype(np.float32), steps[-1].text_embed.numpy())
    assert named["rows"][0]["key"] == data.keys()[rows[0]]


def test_foreign_folders_and_pickled_traps_are_no_priors(emb, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    assert train(emb, tmp_path / "out", "--prior", "ridge").exception is None
    (tmp_path / "out" / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "not a whole safetensors file" in str(run("evaluate", tmp_path / "out", emb).exception)
    assert not (tmp_path / "sprung").exists()
    assert "no such file or folder" in str(run("evaluate", tmp_path / "nowhere", emb).exception)
