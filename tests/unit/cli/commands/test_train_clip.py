"""train-clip: from image shards to a model that encode and plain open_clip take."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
from safetensors.numpy import load_file

from embedpipe import files
from embedpipe.errors import EmbedpipeError
from tests import shards
from tests.commands import result_of, run

SETTINGS = {
    "train.steps": 12,
    "train.batch_size": 16,
    "train.evaluate_every": 6,
    "train.save_every": 3,
    "train.log_every": 4,
    "clip.model.embed_dim": 16,
    "clip.model.vision_cfg.image_size": 32,
    "clip.model.vision_cfg.patch_size": 16,
    "clip.model.vision_cfg.width": 32,
    "clip.model.vision_cfg.layers": 1,
    "clip.model.text_cfg.width": 32,
    "clip.model.text_cfg.heads": 2,
}
SMALL = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
TINY = ["--preset", "vit-tiny", *SMALL, "--valid-share", "0.2", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shards.write_shards(tmp_path_factory.mktemp("data"), shards=2, per_shard=30)


@pytest.fixture(scope="module")
def clip(data, tmp_path_factory):
    """A run that nothing disturbed, and what it printed."""
    out = tmp_path_factory.mktemp("clip") / "clip"
    return out, result_of("train-clip", data, out, *TINY)


def weights(folder):
    return load_file(Path(folder) / "open_clip_model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


def test_it_says_what_it_did(clip):
    out, outcome = clip
    assert outcome["steps"] == 12
    assert outcome["train_rows"] + outcome["scores"]["valid"]["n"] == 60
    assert outcome["metrics"]["chance_at_10"] == pytest.approx(10 / outcome["scores"]["valid"]["n"])
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "clip"
    assert record["metrics"] == outcome["metrics"]
    assert record["recipe"]["train"]["steps"] == 12
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [6, 12]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_plain_open_clip_loads_it(clip):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip[0]}")
    assert model.visual.image_size in (32, (32, 32))
    assert open_clip.get_tokenizer(f"local-dir:{clip[0]}")(["a cat"]).shape == (1, 24)
    assert transform is not None


def test_encode_takes_it(clip, data, tmp_path):
    outcome = run("encode", data, tmp_path / "emb", "--model", clip[0], "--gpus", "0")
    assert outcome.exception is None, outcome.exception
    assert "60 rows in 2 shards" in outcome.stdout


def test_another_seed_gives_other_weights(clip, data, tmp_path):
    result_of("train-clip", data, tmp_path / "other", *TINY, "--seed", "1")
    assert not same(weights(tmp_path / "other"), weights(clip[0]))


def test_run_again_when_finished_changes_nothing(clip, data):
    out, outcome = clip
    before = weights(out)
    again = run("train-clip", data, out, *TINY, "--json")
    assert json.loads(again.stdout) == outcome
    assert "train-clip: all 12 steps were done before; nothing is left to train" in again.stderr
    assert same(weights(out), before)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_weights(clip, data, tmp_path):
    out = tmp_path / "clip"
    command = [sys.executable, "-m", "embedpipe_cli", "train-clip", data, str(out), *TINY]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while not list((out / "checkpoints").glob("step-*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "open_clip_model.safetensors").exists()
    result_of("train-clip", data, out, *TINY)
    assert same(weights(out), weights(clip[0]))


def test_another_model_in_the_same_folder_is_refused(clip, data):
    outcome = run("train-clip", data, clip[0], *TINY, "--set", "clip.model.embed_dim=8")
    assert "another recipe or data: clip.model.embed_dim was 16, now 8" in str(outcome.exception)


def test_other_pictures_in_the_same_folder_are_refused(clip, data, tmp_path):
    shutil.copytree(clip[0], tmp_path / "clip")
    other = shards.write_shards(tmp_path / "other", shards=2, per_shard=31)
    outcome = run("train-clip", other, tmp_path / "clip", *TINY)
    assert "another recipe or data: the pictures of DATA (sha256) was" in str(outcome.exception)


def test_a_locked_trunk_learns_and_resumes_from_kept_features(data, tmp_path):
    brief = ["--set", "train.batch_size=16", "--set", "train.save_every=2", "--valid-share", "0.2", "--device", "cpu"]
    whole = result_of("train-clip", data, tmp_path / "whole", *brief, "--steps", "3")
    assert whole["trained_parameters"] < whole["parameters"]
    features = list((tmp_path / "whole" / "cache").glob("features-*.npy"))
    assert len(features) == 1
    made = features[0].stat().st_mtime_ns
    assert result_of("train-clip", data, tmp_path / "whole", *brief, "--steps", "3")["steps"] == 3
    assert features[0].stat().st_mtime_ns == made


def test_a_batch_larger_than_the_data_says_what_to_give(data, tmp_path):
    outcome = run("train-clip", data, tmp_path / "clip", *TINY, "--set", "train.batch_size=500")
    assert isinstance(outcome.exception, EmbedpipeError)
    assert "fewer than a batch of 500. Give `train.batch_size=" in str(outcome.exception)


def test_a_split_column_without_held_out_rows_is_refused_before_training(data, tmp_path):
    outcome = run("train-clip", data, tmp_path / "clip", *TINY, "--split-column", "label")
    assert "no rows of the split 'train'" in str(outcome.exception)


def test_a_dry_run_looks_at_the_data_and_writes_nothing(clip, data, tmp_path):
    said = result_of("train-clip", data, tmp_path / "clip", *TINY, "--dry-run")
    assert said["clip"]["model"]["embed_dim"] == 16
    assert said["plan"]["splits"] == {"train": clip[1]["train_rows"], "valid": clip[1]["scores"]["valid"]["n"]}
    assert said["plan"]["runs"] == {str(tmp_path / "clip"): {"steps": 12, "done": 0, "left": 12}}
    refused = run("train-clip", data, tmp_path / "clip", *TINY, "--set", "train.batch_size=500", "--dry-run")
    assert "fewer than a batch of 500" in str(refused.exception)
    assert not (tmp_path / "clip").exists()


def test_into_an_object_store_it_trains_the_same(data, clip):
    result_of("train-clip", data, "memory://clip", *TINY)
    name = "open_clip_model.safetensors"
    assert files.read_bytes(f"memory://clip/{name}") == (clip[0] / name).read_bytes()


def test_too_few_held_out_rows_are_refused(data, tmp_path):
    """Retrieval among one is no score."""
    few = run("train-clip", data, tmp_path / "out", "--preset", "vit-tiny", *SMALL, "--valid-share", "0.001")
    assert "held-out rows; 2 or more are needed" in str(few.exception) or "no rows of the split" in str(few.exception)
