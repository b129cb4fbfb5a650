"""Stages train exactly: killed and resumed to the same bits, over two processes as one, and apart as together."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle2_core import Decoder, DecoderBatch, DecoderStage, DecoderTrainer, LowresConfig, StageConfig, load_decoder
from dalle2_core.files import read_tensors
from dalle2_core.training import OptimConfig, Run, TrainConfig, join_processes, train
from dalle2_core.training.metrics_log import read_metrics
from embedpipe.execute import torch_threads
from tests.launched import finish
from tests.tiny_unet import SMALL, unet

CONFIG = TrainConfig(steps=8, batch_size=10, log_every=1, evaluate_every=4, save_every=2, ema_decay=0.9)
OPTIM = OptimConfig(lr=3e-3, warmup_steps=3, weight_decay=0.1)


def upsampler():
    """An upsampler that draws for everything there is to draw for: noise, blur, crops, levels, dropped embeddings."""
    network = unet(lowres_cond=True, lowres_noise_cond=True, self_cond=True)
    config = StageConfig(16, LowresConfig(8), timesteps=20, random_crop_size=8, image_cond_drop_prob=0.5)
    return DecoderStage(network, config)


def rows(n, step):
    draws = torch.Generator().manual_seed(step)
    embeds = torch.nn.functional.normalize(torch.randn(n, 6, generator=draws), dim=1)
    return DecoderBatch((torch.rand(n, 3, 16, 16, generator=draws) * 255).to(torch.uint8), embeds)


def go(folder, config=CONFIG, on_step=None, show=None):
    together = join_processes("cpu")
    start, stop = together.share(config.batch_size)

    def stream(step):
        while True:
            yield rows(config.batch_size, step).part(start, stop)
            step += 1

    return train(upsampler(), stream, Run(Path(folder)), config, OPTIM, on_step=on_step, show=show, processes=together)


def trainer_steps(count, world=1, rank=0):
    """Losses and weights of a DecoderTrainer whose processes are given an even share of eight rows each time."""
    second = {**SMALL, "image_embed_dim": None}
    decoder = Decoder((unet(), unet(1, **second)), image_sizes=(8, 16), timesteps=20)
    trainer, losses = DecoderTrainer(decoder, lr=1e-3, ema_update_after_step=0, ema_update_every=1), []
    for step in range(count):
        for number in (1, 2):
            batch = rows(8, step).part(8 * rank // world, 8 * (rank + 1) // world)
            losses.append(trainer(batch.images, image_embed=batch.image_embed, unet_number=number, max_batch_size=3))
            trainer.update(number)
    return losses, trainer.ema_decoder.state_dict()


def losses_of(folder):
    return [it["loss"] for it in read_metrics(Path(folder) / "metrics.jsonl") if it["kind"] == "train"]


def final(folder):
    newest = max((Path(folder) / "checkpoints").glob("step-*"))
    return {name: read_tensors(newest / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)


SCRIPT = """
import os, signal, sys
import torch
from tests.unit.dalle2_core.training import test_decoder_processes as t

t.torch.set_num_threads(1)
trainer, folder = sys.argv[1:]
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if trainer != "-":
    losses, weights = t.trainer_steps(3, world, rank)
    if rank == 0:
        torch.save((losses, weights), trainer)
import dalle2_core.training.loop
dalle2_core.training.loop.plot_curves = lambda metrics, picture: None
def die(report):
    if report.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
t.go(folder, t.CONFIG, on_step=die)
"""


def killed(root, trainer="-", launcher="alone"):
    """Train into `root`/hit in a process that is killed at step 5, or in two under torchrun; what was said."""
    script = root / "script.py"
    script.write_text(SCRIPT)
    code, said = finish(script, trainer, root / "hit", launcher=launcher)
    assert code != 0, said[-3000:]
    assert losses_of(root / "hit"), said[-3000:]
    return root / "hit"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    go(folder)
    return folder


def test_a_stage_in_parts_trains_as_in_one(tmp_path, alone):
    go(tmp_path, replace(CONFIG, accumulate=3))
    assert losses_of(tmp_path) == pytest.approx(losses_of(alone), abs=1e-5)


def test_interrupted_it_goes_on_to_the_same_bits_and_shows_what_is_due(tmp_path, alone):
    def stop(report):
        if report.step == 3:
            raise KeyboardInterrupt

    shown = []
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, replace(CONFIG, show_every=3), on_step=stop, show=lambda stage, step: shown.append(step))
    go(tmp_path, replace(CONFIG, show_every=3), show=lambda stage, step: shown.append((step, stage.training)))
    assert shown == [(3, False), (6, False), (8, False)]
    expected, found = final(alone), final(tmp_path)
    for part in expected:
        assert [name for name in expected[part] if not torch.equal(expected[part][name], found[part][name])] == []
    assert losses_of(tmp_path) == losses_of(alone)


@pytest.mark.slow
def test_killed_and_run_again_the_bits_are_those_of_an_undisturbed_run(tmp_path):
    with torch_threads(1):  # as in the process that is killed: how many there are decides the last bit
        go(killed(tmp_path))
        go(tmp_path / "calm")
    calm, hit = final(tmp_path / "calm"), final(tmp_path / "hit")
    for part in calm:
        assert [name for name in calm[part] if not torch.equal(calm[part][name], hit[part][name])] == []


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes did: trained by a DecoderTrainer, and by the training loop until they were killed."""
    root = tmp_path_factory.mktemp("two")
    killed(root, root / "trainer.pt", launcher="torchrun")
    return root


@pytest.mark.slow
def test_two_processes_train_as_one_and_killed_ones_are_continued_by_one(two, tmp_path, alone):
    out = shutil.copytree(two / "hit", tmp_path / "two")
    assert losses_of(out)[:4] == pytest.approx(losses_of(alone)[:4], abs=1e-5)
    go(out)
    assert losses_of(out) == pytest.approx(losses_of(alone), abs=1e-5)
    expected, found = final(alone), final(out)
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(found["model"][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_of_a_decoder_trainer_train_as_one(two):
    losses, weights = torch.load(two / "trainer.pt")
    expected_losses, expected = trainer_steps(3)
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_stages_from_different_runs_become_a_decoder(tmp_path):
    first = DecoderStage(unet(), StageConfig(8, timesteps=20))
    first.save(tmp_path / "a" / "stage-1")
    upsampler().save(tmp_path / "b" / "stage-2")
    decoder = load_decoder(tmp_path / "a" / "stage-1", tmp_path / "b" / "stage-2")
    assert [stage.config.image_size for stage in decoder.cascade] == [8, 16]
    decoder.save(tmp_path / "c")
    again = load_decoder(tmp_path / "c")
    assert all(torch.equal(it, again.state_dict()[name]) for name, it in decoder.state_dict().items())
