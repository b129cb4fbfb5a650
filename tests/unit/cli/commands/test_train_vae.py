"""train-vae: from image shards to an autoencoder whose latents decoders work in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from dalle2_core import Decoder, VQGanVAE, load_autoencoder
from embedpipe import files
from tests import shards
from tests.commands import result_of, run
from tests.tiny_unet import unet

SETTINGS = {
    "train.steps": 12,
    "train.batch_size": 8,
    "train.evaluate_every": 6,
    "train.save_every": 3,
    "train.log_every": 4,
    "vae.image_size": 16,
    "vae.dim": 8,
    "vae.resnet_groups": 4,
    "vae.vq_codebook_size": 16,
    "vae.use_vgg_and_gan": "true",
    "vae.discr_layers": 2,
    "vae.discr_start_step": 4,
}
SMALL = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
TINY = [*SMALL, "--valid-share", "0.2", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shards.write_shards(tmp_path_factory.mktemp("data"), shards=2, per_shard=20)


@pytest.fixture(scope="module")
def vae(data, tmp_path_factory):
    """A run that nothing disturbed, and what it printed."""
    out = tmp_path_factory.mktemp("vae") / "vae"
    return out, result_of("train-vae", data, out, *TINY)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


def test_it_says_what_it_did_and_leaves_what_it_should(vae):
    out, outcome = vae
    assert outcome["steps"] == 12
    assert outcome["train_rows"] + outcome["valid_rows"] == 40
    assert outcome["downsampling"] == outcome["latent_channels"] == 4
    assert set(outcome["metrics"]) == {"reconstruction", "psnr", "codes_used", "perplexity"}
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "vae"
    assert record["metrics"] == outcome["metrics"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [6, 12]
    assert "judging" in lines[-1] or any("judging" in line for line in lines if line["kind"] == "train")
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    grids = sorted(it.name for it in (out / "reconstructions").iterdir())
    assert grids == ["step-000000006.png", "step-000000012.png"]
    width, height = Image.open(out / "reconstructions" / grids[0]).size
    assert (width - 2) % 18 == 0
    assert height == 2 * 18 + 2


def test_a_decoder_works_in_its_latents(vae):
    model = load_autoencoder(vae[0])
    assert isinstance(model, VQGanVAE)
    assert int(model.steps) == vae[1]["best_step"]
    assert bool((model.latent_std > 0).all())
    assert not bool((model.latent_std == 1).all())  # measured
    decoder = Decoder(unet=unet(), image_size=16, vae=model, timesteps=10, sample_timesteps=2)
    assert decoder.sample(image_embed=torch.randn(2, 6)).shape == (2, 3, 16, 16)


def test_run_again_when_finished_changes_nothing(vae, data):
    out, outcome = vae
    before = weights(out)
    again = run("train-vae", data, out, *TINY, "--json")
    assert json.loads(again.stdout) == outcome
    assert "train-vae: all 12 steps were done before; nothing is left to train" in again.stderr
    assert same(weights(out), before)


def test_a_dry_run_of_a_finished_run_counts_what_was_decoded(vae, data):
    out, outcome = vae
    plan = result_of("train-vae", data, out, *TINY, "--dry-run")["plan"]
    assert plan["splits"] == {"train": outcome["train_rows"], "valid": outcome["valid_rows"]}
    assert plan["runs"] == {str(out): {"steps": 12, "done": 12, "left": 0}}


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bits(vae, data, tmp_path):
    out = tmp_path / "vae"
    command = [sys.executable, "-m", "embedpipe_cli", "train-vae", data, str(out), *TINY]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while not list((out / "checkpoints").glob("step-*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "model.safetensors").exists()
    assert result_of("train-vae", data, out, *TINY)["metrics"] == vae[1]["metrics"]
    assert same(weights(out), weights(vae[0]))


BY_STEP = ["--steps", "6", "--set", "train.log_every=1"]


def trained_lines(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"train"' in line]


def assert_same_training(one, other):
    """Losses of every step, the discriminator's among them, but for rounding."""
    assert len(one) == len(other) == 6
    assert "judging" in one[-1]
    for mine, theirs in zip(one, other, strict=True):
        for name in mine.keys() & {"reconstruction", "commitment", "judging", "fooling_weight"}:
            assert theirs[name] == pytest.approx(mine[name], rel=0.02, abs=1e-4), (name, mine["step"])


@pytest.fixture(scope="module")
def by_step(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("by_step") / "vae"
    result_of("train-vae", data, out, *TINY, *BY_STEP)
    return trained_lines(out)


@pytest.mark.slow
def test_taken_in_parts_it_is_the_same_training(by_step, data, tmp_path):
    result_of("train-vae", data, tmp_path / "vae", *TINY, *BY_STEP, "--set", "train.accumulate=2")
    assert_same_training(by_step, trained_lines(tmp_path / "vae"))


@pytest.mark.slow
def test_two_processes_are_the_same_training(by_step, data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "--local-addr",
        "127.0.0.1",
        "-m",
        "embedpipe_cli",
        "train-vae",
        data,
        str(tmp_path / "vae"),
        *TINY,
        *BY_STEP,
        "--json",
    ]
    loopback = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=loopback)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 6
    assert_same_training(by_step, trained_lines(tmp_path / "vae"))


def test_a_folder_of_images_without_captions(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for place in range(12):
        (folder / "deep" / f"{place}.png").write_bytes(shards.png(place))
    (folder / "broken.jpg").write_bytes(b"no picture")
    brief = ["--steps", "2", "--set", "train.batch_size=4", "--set", "vae.use_vgg_and_gan=false"]
    plan = result_of("train-vae", folder, tmp_path / "vae", *TINY, *brief, "--dry-run")["plan"]
    assert sum(plan["splits"].values()) == 13, "whether a picture decodes is not looked at"
    outcome = result_of("train-vae", folder, tmp_path / "vae", *TINY, *brief)
    assert outcome["train_rows"] + outcome["valid_rows"] == 12
    assert sum(outcome["rejects"].values()) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--set", "vae.image_size=18"], "image_size is 18; with 2 layers it must be a multiple of 4"),
        (["--set", "vae.vae_type=vit"], "the vit of ViT-VQGAN is not built here"),
        (["--set", "vae.codebook_size=8"], "no setting 'vae.codebook_size'. Did you mean vae.vq_codebook_size"),
        (["--set", "train.batch_size=100"], "fewer than a batch of 100. Give `train.batch_size="),
        (["--preset", "huge"], "no preset of an autoencoder 'huge'"),
        (["--split-column", "label"], "no rows of the split 'train'"),
        (["--vgg", "none.pth"], "none.pth: no such file"),
        (["--set", "vae.channels=1"], "vae.channels is 1, but pictures of files have 3"),
        (["--set", "train.best_metric=fid"], "which the evaluation does not give; it gives codes_used"),
    ],
)
def test_what_cannot_be_is_refused(data, tmp_path, words, problem):
    outcome = run("train-vae", data, tmp_path / "vae", *TINY, *words)
    assert problem in str(getattr(outcome.exception, "message", outcome.exception))


def test_into_an_object_store_it_trains_the_same(data, vae):
    result_of("train-vae", data, "memory://vae", *TINY)
    here, there = vae[0] / "model.safetensors", "memory://vae/model.safetensors"
    assert files.read_bytes(there) == here.read_bytes()
    assert files.names("memory://vae/checkpoints") == sorted(path.name for path in (vae[0] / "checkpoints").iterdir())
    assert not files.exists("memory://vae/cache")


def test_no_pictures_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images in it" in str(run("train-vae", tmp_path / "empty", tmp_path / "vae", *TINY).exception)
    (tmp_path / "empty" / "a.jpg").write_bytes(b"x")
    assert "not one picture (" in str(run("train-vae", tmp_path / "empty", tmp_path / "vae", *TINY).exception)


def test_another_run_in_the_same_folder_is_refused(vae, data, tmp_path):
    outcome = run("train-vae", data, vae[0], *TINY, "--set", "vae.dim=16")
    assert "another recipe or data: vae.dim was 8, now 16" in str(outcome.exception)
    shutil.copytree(vae[0], tmp_path / "vae")
    other = shards.write_shards(tmp_path / "other", shards=2, per_shard=19)
    outcome = run("train-vae", other, tmp_path / "vae", *TINY)
    assert "another recipe or data: the pictures of DATA (sha256) was" in str(outcome.exception)


def test_a_dry_run_looks_at_the_data_and_writes_nothing(vae, data, tmp_path):
    said = result_of("train-vae", data, tmp_path / "vae", *TINY, "--dry-run")
    assert said["vae"]["dim"] == 8
    assert said["plan"]["splits"] == {"train": vae[1]["train_rows"], "valid": vae[1]["valid_rows"]}
    assert said["plan"]["runs"] == {str(tmp_path / "vae"): {"steps": 12, "done": 0, "left": 12}}
    for words, problem in (
        (["--set", "train.batch_size=100"], "fewer than a batch of 100"),
        (["--split-column", "label"], "no rows of the split 'train'"),
        (["--split-column", "lable"], "has no metadata field 'lable'"),
    ):
        assert problem in str(run("train-vae", data, tmp_path / "vae", *TINY, *words, "--dry-run").exception)
    assert not (tmp_path / "vae").exists()
