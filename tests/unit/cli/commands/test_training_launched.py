"""Trainings under launchers, through the command line: killed in the middle and continued by others, as if never."""

import json
import shutil
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from dalle2_core.training.checkpoint import read_checkpoint
from tests.commands import run
from tests.embeddings import write_dataset
from tests.launched import kill_when, launch

SETTINGS = {
    "train.batch_size": 30,
    "train.steps": 60,
    "train.evaluate_every": 20,
    "train.save_every": 10,
    "train.log_every": 5,
    "network.dim": 16,
    "network.depth": 2,
    "network.ff_dropout": 0,
    "network.self_cond": "true",
    "diffusion.timesteps": 20,
    "diffusion.sample_timesteps": 2,
    "optim.warmup_steps": 5,
}
SMALL = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    text = np.random.default_rng(0).normal(size=(300, 16))
    return write_dataset(tmp_path_factory.mktemp("emb") / "emb", np.roll(text, 1, axis=1) + 0.1, text, shards=3)


def words(emb, out, *more):
    return ["-m", "embedpipe_cli", "train-prior", emb, out, *SMALL, "--device", "cpu", *more]


def train_here(emb, out):
    outcome = run("train-prior", emb, out, *SMALL, "--device", "cpu")
    assert outcome.exception is None, outcome.exception


@pytest.fixture(scope="module")
def undisturbed(emb, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "prior"
    train_here(emb, out)
    return out


def metrics_of(out):
    """{(kind, step): numbers}, and no line twice."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {(line.pop("kind"), line.pop("step")): line for line in lines}
    assert len(found) == len(lines)
    for line in lines:
        line.pop("seconds", None)
    return found


def assert_like(out, undisturbed):
    """Exported weights, the last checkpoint's and all metrics are those of the other run to 1e-5."""
    newest = max((undisturbed / "checkpoints").glob("step-*")).name
    ours, theirs = (read_checkpoint(it / "checkpoints" / newest)[1] for it in (out, undisturbed))
    exported = {
        "model.safetensors": (load_file(out / "model.safetensors"), load_file(undisturbed / "model.safetensors"))
    }
    for name, (one, other) in (exported | {part: (ours[part], theirs[part]) for part in ("model", "ema")}).items():
        assert one.keys() == other.keys()
        for tensor in one:
            torch.testing.assert_close(one[tensor], other[tensor], rtol=0, atol=1e-5, msg=f"{name} {tensor}")
    logged, logged_there = metrics_of(out), metrics_of(undisturbed)
    assert logged.keys() == logged_there.keys()
    for which, numbers in logged.items():
        assert numbers == pytest.approx(logged_there[which], abs=1e-5, rel=1e-5), which


def has_done(out, steps):
    """Whether there is a checkpoint of that step."""
    return (out / "checkpoints" / f"step-{steps:09d}").exists()


@pytest.mark.slow
def test_a_prior_that_is_killed_is_continued_by_others_as_if_undisturbed(emb, undisturbed, tmp_path):
    """Begun by one process, continued by two that each have the model, by two that share it, and by one.

    One of the two that share it dies: torchrun starts both again, and they go on. For whole models see
    `test_training_processes`.
    """
    out, left = tmp_path / "prior", tmp_path / "left"
    for launcher, steps in (("alone", 10), ("accelerate", 20)):
        kill_when(lambda: has_done(out, steps), *words(emb, out, "--parallel", "ddp"), launcher=launcher)  # noqa: B023
        assert not (out / "model.safetensors").exists(), "it was killed before its end"
    with launch(*words(emb, out, "--parallel", "fsdp"), restarts=3) as process:
        while not has_done(out, 30):
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
        workers = [it for it in psutil.Process(process.pid).children() if str(out) in it.cmdline()]
        assert len(workers) == 2
        workers[1].kill()
        psutil.wait_procs(workers)  # torchrun ends the other, and starts two that import for seconds before they train
        shutil.copytree(out, left)
        said, _ = process.communicate()
    # torchrun names whichever it saw first: the killed one, or the other, whose connection broke.
    assert "exitcode: -9" in said or "gloo" in said
    assert "goes on from step" in said
    assert process.returncode == 0, said[-3000:]
    assert_like(out, undisturbed)
    assert not (left / "model.safetensors").exists()
    train_here(emb, left)
    assert_like(left, undisturbed)
