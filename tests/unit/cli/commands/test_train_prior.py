"""train-prior and evaluate, from embeddings on disk to a comparison, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.commands import result_of, run
from tests.embeddings import write_dataset
from tests.shards import record_anew

SETTINGS = {
    "train.steps": 60,
    "train.batch_size": 32,
    "train.evaluate_every": 30,
    "train.save_every": 10,
    "train.log_every": 10,
    "network.dim": 32,
    "network.depth": 1,
    "diffusion.timesteps": 20,
    "diffusion.sample_timesteps": 4,
    "optim.warmup_steps": 5,
}
SMALL = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    """400 rows whose image is a fixed rotation of their text, plus noise: ridge and prior can learn it."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(400, 16))
    rotation, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    image = text @ rotation + 0.3 * rng.normal(size=(400, 16))
    split = ["valid" if row % 8 == 0 else "train" for row in range(400)]
    return write_dataset(tmp_path_factory.mktemp("emb") / "emb", image, text, 3, {"split": split})


@pytest.fixture(scope="module")
def prior(emb, tmp_path_factory):
    out = tmp_path_factory.mktemp("prior") / "prior"
    outcome = result_of("train-prior", emb, out, *SMALL, "--split-column", "split", "--device", "cpu")
    assert outcome["train_rows"] == 350
    assert outcome["valid_rows"] == 50
    return out


def test_a_run_leaves_model_metrics_curves_and_what_made_it(prior):
    assert {"config.json", "model.safetensors", "metrics.jsonl", "curves.png", "run.json"} <= set(os.listdir(prior))
    assert (prior / "curves.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((prior / "run.json").read_text())
    assert facts["recipe"]["train"]["steps"] == 60
    assert facts["versions"]["torch"]
    steps = [json.loads(line)["step"] for line in (prior / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 60


def test_evaluate_sets_the_prior_beside_the_baselines_and_names_winners(prior, emb):
    found = result_of("evaluate", prior, emb, "--device", "cpu")
    scores = {row["predictor"]: row for row in found["rows"]}
    assert set(scores) == {"prior", "text", "mean", "ridge"}
    assert scores["ridge"]["cosine_image"] > 0.8, "the task is linear"
    assert abs(scores["mean"]["spread"] - 1) < 1e-6
    best = max(scores, key=lambda name: scores[name]["cosine_image"])
    assert found["winners"]["cosine_image"] == [best]
    assert best in found["sentence"]


def test_the_same_command_again_changes_nothing(prior, emb):
    before = (prior / "model.safetensors").read_bytes()
    result_of("train-prior", emb, prior, *SMALL, "--split-column", "split", "--device", "cpu")
    assert (prior / "model.safetensors").read_bytes() == before


def test_a_dry_run_looks_at_the_data_and_writes_nothing(prior, emb, tmp_path):
    words = ["train-prior", emb, tmp_path / "new", *SMALL, "--split-column", "split", "--dry-run"]
    plan = result_of(*words)["plan"]
    assert plan["splits"] == {"train": 350, "valid": 50}
    assert plan["left_out"] == {"not finite": 0}
    assert plan["runs"] == {str(tmp_path / "new"): {"steps": 60, "done": 0, "left": 60}}
    every = result_of(*words, "--prior", "all")
    assert {name: list(said["plan"]["runs"]) for name, said in every.items()} == {
        **{name: [str(tmp_path / "new" / name)] for name in ("diffusion", "autoregressive", "contrastive", "unclip")},
        **{name: [] for name in ("ridge", "mean")},
    }
    assert "fewer than a batch of 1,000" in str(run(*words, "--set", "train.batch_size=1000").exception)
    assert not (tmp_path / "new").exists()
    words[2] = prior
    assert result_of(*words)["plan"]["runs"] == {str(prior): {"steps": 60, "done": 60, "left": 0}}
    assert "network.depth was 1, now 2" in str(run(*words, "--set", "network.depth=2").exception)


def test_a_run_that_goes_on_says_from_where(emb, tmp_path):
    words = ["train-prior", emb, tmp_path / "out", *SMALL, "--split-column", "split", "--device", "cpu"]
    words += ["--set", "optim.schedule=constant"]
    assert "goes on" not in run(*words, "--steps", "2").stderr
    assert "train-prior diffusion: goes on from step 2 of 4" in run(*words, "--steps", "4").stderr
    assert "all 4 steps were done before; nothing is left to train" in run(*words, "--steps", "4").stderr


def test_other_settings_in_the_same_folder_are_refused_with_what_differs(prior, emb):
    outcome = run("train-prior", emb, prior, *SMALL, "--set", "network.depth=2", "--split-column", "split")
    assert "depth" in str(outcome.exception)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_weights(prior, emb, tmp_path):
    out = tmp_path / "prior"
    command = [sys.executable, "-m", "embedpipe_cli", "train-prior", emb, str(out), *SMALL, "--split-column", "split"]
    command += ["--device", "cpu"]
    # How many threads torch has decides the last bit.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list(out.glob("checkpoints/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result_of(*command[3:])
    ours, theirs = load_file(out / "model.safetensors"), load_file(Path(prior) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_embeddings_of_another_encoder_are_refused(prior, emb, tmp_path):
    rng = np.random.default_rng(1)
    other = write_dataset(tmp_path / "other", rng.normal(size=(40, 16)), rng.normal(size=(40, 16)), weights="1" * 64)
    outcome = run("evaluate", prior, other)
    assert "another encoder" in str(outcome.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.stepz=5"], ["train.stepz", "steps"]),
        (["--set", "optim.lr=fast"], ["optim.lr"]),
        (["--set", "network=5"], ["group"]),
        (["--set", "nonsense"], ["key=value"]),
        (["--config", "/nowhere.json"], ["nowhere.json"]),
        (["--preset", "tyni"], ["tiny"]),
        (["--split-column", "splot"], ["splot", "split"]),
        (["--set", "train.batch_size=1000"], ["350", "batch_size=87"]),
    ],
)
def test_mistakes_are_named(emb, tmp_path, arguments, words):
    outcome = run("train-prior", emb, tmp_path / "out", "--split-column", "split", *arguments)
    assert outcome.exception is not None
    message = getattr(outcome.exception, "message", None) or str(outcome.exception)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


def test_rows_that_are_not_unit_vectors_are_counted_and_refused(tmp_path):
    rng = np.random.default_rng(2)
    folder = write_dataset(tmp_path / "emb", rng.normal(size=(64, 8)), rng.normal(size=(64, 8)), shards=1)
    path = tmp_path / "emb" / "img_emb" / "img_emb_00000.npy"
    rows = np.load(path)
    rows[:3] *= 2
    np.save(path, rows)
    record_anew(tmp_path / "emb", 0, path)
    outcome = run("train-prior", folder, tmp_path / "out", "--set", "train.batch_size=8")
    assert "3 image rows are not of norm 1 (norms from 2 to 2)" in str(outcome.exception)
    assert "`normalise=True`" in str(outcome.exception)


def test_a_file_of_settings_is_put_over_the_preset_and_set_over_the_file(emb, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"optim": {"lr": 0.5, "warmup_steps": 7}}))
    outcome = run(
        "train-prior", emb, tmp_path / "x", "--config", tmp_path / "c.json", "--set", "optim.lr=0.25", "--dry-run"
    )
    recipe = json.loads(outcome.stdout)
    assert recipe["optim"]["lr"] == 0.25
    assert recipe["optim"]["warmup_steps"] == 7
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_under_torchrun_two_processes_train_the_prior_of_one(emb, tmp_path):
    """The same losses to 1e-5, one voice, and a run folder like any other."""
    words = ["train-prior", emb, *SMALL, "--split-column", "split", "--device", "cpu", "--json"]
    words += ["--set", "network.ff_dropout=0", "--set", "train.log_every=1", "--steps", "12"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    launched += ["--nproc-per-node", "2", "-m", "embedpipe_cli", *words[:2], tmp_path / "two", *words[2:]]
    done = subprocess.run(launched, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 12, "the first process alone speaks"
    assert run(*words[:2], tmp_path / "one", *words[2:]).exception is None
    losses = {}
    for name in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses["two"]) == 12
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["recipe"]["train"]["steps"] == 12


def test_a_closed_form_needs_no_batch(tmp_path, embedpipe):
    write_dataset(tmp_path / "emb", *np.random.default_rng(0).normal(size=(2, 40, 8)), shards=1)
    done = embedpipe("train-prior", tmp_path / "emb", tmp_path / "out", "--prior", "ridge", "--valid-share", 0.3)
    assert done.exit_code == 0, done.stderr
    refused = embedpipe("train-prior", tmp_path / "emb", tmp_path / "other", "--valid-share", 0.3)
    assert "fewer than a batch of 128" in refused.stderr


def test_a_prior_that_is_none_names_all_as_well(embedpipe, emb, tmp_path):
    refused = embedpipe("train-prior", emb, tmp_path / "out", "--prior", "nope")
    assert (refused.exit_code, "all" in refused.stderr) == (2, True), refused.stderr
