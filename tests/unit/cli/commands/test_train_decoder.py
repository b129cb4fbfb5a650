"""train-decoder: from image shards and embeddings on disk to a decoder, through the command line."""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from dalle2_core import load_decoder
from dalle2_core.autoencoders.registry import AUTOENCODERS
from dalle2_core.errors import NonFiniteLoss
from embedpipe import files
from embedpipe.clip_model.encoder_card import card_from
from tests import shards as made
from tests.commands import result_of, run

SMALL = [
    "--sizes",
    "8,16",
    "--dims",
    "8",
    "--timesteps",
    "20",
    "--steps",
    "4",
    "--batch-size",
    "6",
    "--valid-share",
    "0.2",
]
SMALL += ["--device", "cpu", "--decode-threads", "2"]
for stage in (1, 2):
    for name, value in {
        "network.dim_mults": "[1,2]",
        "network.attn_heads": 2,
        "network.attn_dim_head": 4,
        "network.init_cross_embed_kernel_sizes": "[3,5]",
        "stage.sample_timesteps": 2,
        "train.save_every": 2,
        "train.evaluate_every": 4,
        "train.log_every": 1,
    }.items():
        SMALL += ["--set", f"stages.{stage}.{name}={value}"]


def error_of(*arguments):
    outcome = run(*arguments)
    assert outcome.exception is not None
    message = getattr(outcome.exception, "message", None) or str(outcome.exception)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def decoder(encoded_once, tmp_path_factory):
    """Both stages, trained by one command, with scores by the encoder of the data."""
    out = tmp_path_factory.mktemp("decoder") / "decoder"
    return out, result_of("train-decoder", *encoded_once, out, *SMALL, "--features", "encoder", "--score-rows", 4)


def weights(out, stage):
    return load_file(Path(out) / f"stage-{stage}" / "model.safetensors")


def assert_same_weights(one, other, stages=(1, 2)):
    for stage in stages:
        ours, theirs = weights(one, stage), weights(other, stage)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def test_a_run_leaves_a_decoder_and_what_made_it(decoder, encoded_once):
    out, outcome = decoder
    assert outcome["complete"]
    assert outcome["join"]["joined"] == 21
    assert outcome["train_rows"] + outcome["valid_rows"] == 21
    loaded = load_decoder(out)
    embeds = torch.nn.functional.normalize(torch.randn(2, loaded.stage(1).unet.config.image_embed_dim), dim=1)
    assert loaded.sample(image_embed=embeds).shape == (2, 3, 16, 16)
    for number in (1, 2):
        folder = out / f"stage-{number}"
        files = {
            "config.json",
            "model.safetensors",
            "run.json",
            "metrics.jsonl",
            "curves.png",
            "checkpoints",
            "samples",
        }
        assert files <= set(os.listdir(folder))
        facts = json.loads((folder / "run.json").read_text())
        assert (facts["kind"], facts["stage"], facts["embeddings"]) == ("decoder-stage", number, encoded_once[1])
        assert facts["join"]["rows"] == 21
        kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert kinds.count("train") == 4
        assert {"valid", "online"} <= set(kinds)


def test_grids_show_true_images_beside_what_was_made(decoder):
    from embedpipe.images.decode import decode
    from embedpipe.load.images.loader import ImageOptions

    out, _ = decoder
    with Image.open(io.BytesIO((out / "stage-2" / "samples" / "step-000000004.png").read_bytes())) as grid:
        assert grid.height == 3 * (96 + 2) + 2, "true images, the smaller ones, the samples"
        first = np.asarray(grid.crop((2, 2, 98, 98)).resize((16, 16), Image.Resampling.NEAREST))
    pictures = [decode(made.jpeg(i), ImageOptions(16).preprocess).pixels.numpy().transpose(1, 2, 0) for i in range(21)]
    assert min(np.abs(first.astype(int) - it).max() for it in pictures) <= 1


def test_scores_are_of_samples_and_true_images(decoder):
    metrics = decoder[1]["stages"][1]["metrics"]
    assert set(metrics) == {"loss", "fid_encoder", "kid_encoder", "similarity", "similarity_true"}
    assert metrics["fid_encoder"] > 0
    assert -1 <= metrics["similarity"] <= 1
    assert metrics["similarity_true"] > 0.3, "true images are like their embeddings"


def test_the_same_command_again_changes_nothing(decoder, encoded_once):
    out, _ = decoder
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    again = run("train-decoder", *encoded_once, out, *SMALL, "--features", "encoder", "--score-rows", 4)
    assert "train-decoder stage 2: all 4 steps were done before; nothing is left to train" in again.stderr
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before
    message = error_of("train-decoder", *encoded_once, out, *SMALL, "--timesteps", 30)
    assert "another recipe or data: stages.1.stage.timesteps was 20, now 30" in message
    message = error_of("train-decoder", *encoded_once, out, *SMALL, "--seed", 1)
    assert "another recipe or data: stages.1.train.seed was 0, now 1" in message


def test_a_stage_trained_alone_is_the_one_of_the_whole_and_plugs_in(decoder, encoded_once, tmp_path):
    second = result_of("train-decoder", *encoded_once, tmp_path / "apart", *SMALL, "--stage", 2)
    assert not second["complete"]
    assert [stage["stage"] for stage in second["stages"]] == [2]
    assert_same_weights(tmp_path / "apart", decoder[0], stages=(2,))
    shutil.copytree(decoder[0] / "stage-1", tmp_path / "apart" / "stage-1")
    assert result_of("train-decoder", *encoded_once, tmp_path / "apart", *SMALL, "--stage", 2)["complete"]
    assert len(load_decoder(tmp_path / "apart").cascade) == 2
    assert len(load_decoder(decoder[0] / "stage-1", tmp_path / "apart" / "stage-2").cascade) == 2


def test_shards_with_shuffled_members_train_on_the_same_pairs(encoded_once, tmp_path):
    """And a run that was begun with one order of images is not continued with another."""
    from dalle2_core.presets.decoder import decoder_preset
    from embedpipe.unclip.data.decoder_batches import ImageSource, open_embeddings, open_joined_images

    source, emb = encoded_once
    for number in range(3):
        order = list(range(number * 7, number * 7 + 7))
        random.Random(number).shuffle(order)
        made.write_tar(tmp_path / "shards" / f"{number:05d}.tar", [member for i in order for member in made.sample(i)])
    found = []
    for data in (source, tmp_path / "shards"):
        dataset, _ = open_embeddings(emb, decoder_preset("tiny"))
        seen = open_joined_images(str(data), dataset, ImageSource(), str(tmp_path / "cache"))
        pairs = {}
        for batch in seen.in_order(np.arange(21), 8, 5, tokens=False):
            for image, embed in zip(batch.images, batch.image_embed, strict=True):
                pairs[embed.numpy().tobytes()] = image.numpy().tobytes()
        found.append(pairs)
    assert len(found[0]) == 21
    assert found[0] == found[1]
    result_of("train-decoder", tmp_path / "shards", emb, tmp_path / "out", *SMALL, "--stage", 1)
    assert "the order of the images in DATA (sha256) was" in error_of(
        "train-decoder", source, emb, tmp_path / "out", *SMALL, "--stage", 1
    )


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_weights(encoded_once, decoder, tmp_path):
    command = [sys.executable, "-m", "embedpipe_cli", "train-decoder", *encoded_once, str(tmp_path / "hit"), *SMALL]
    # How many threads torch has decides the last bit.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "hit").glob("stage-2/checkpoints/step*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result_of("train-decoder", *encoded_once, tmp_path / "hit", *SMALL)
    assert_same_weights(tmp_path / "hit", decoder[0])


@pytest.mark.slow
def test_two_processes_train_the_stage_of_one(encoded_once, decoder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "-m", "embedpipe_cli", "train-decoder", *encoded_once]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), *SMALL, "--stage", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = weights(tmp_path / "two", 1), weights(decoder[0], 1)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "9,16"], ["image_size is 9", "multiple of 4"]),
        (["--sizes", "16,8"], ["16, 8 do not grow", "small to large"]),
        (["--sizes", "8,x"], ["8,x", "one for each stage with commas"]),
        (["--dims", "8,8,8"], ["dims: 3 values for 2 stages"]),
        (["--stage", "3"], ["no stage 3", "1 to 2"]),
        (["--objective", "v,noize"], ["noize", "noise"]),
        (["--set", "stages.3.train.steps=5"], ["stages.3", "1 to 2"]),
        (["--set", "stages.1.network.dimm=5"], ["stages.1.network.dimm", "dim"]),
        (["--set", "stages.1.network.image_embed_dim=7"], ["image_embed_dim is 7", "ask for"]),
        (["--text-tokens"], ["has no text tokens", "Encode it again with `embedpipe.encode(text_tokens=True)`"]),
        (["--batch-size", "1000"], ["fewer than a batch of 1,000", "stages.1.train.batch_size"]),
        (["--vae", "/nowhere"], ["/nowhere", "no such file"]),
        (["--cache-latents"], ["`cache_latents`", "Give `vaes`"]),
        (["--preset", "tyni"], ["tiny"]),
        (["--features", "inception:/nowhere.pth"], ["/nowhere.pth", "no such file"]),
        (["--cond-scale", "2", "--set", "stages.1.stage.image_cond_drop_prob=0"], ["image_cond_drop_prob above 0"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_the_first_step(encoded_once, tmp_path, arguments, words):
    message = error_of("train-decoder", *encoded_once, tmp_path / "out", *SMALL, *arguments)
    assert [word for word in words if word not in message] == []
    assert not list(tmp_path.rglob("step-*"))


def test_stages_of_other_embeddings_or_sizes_are_not_put_together(
    decoder, encoded_once, tmp_path, encode_config, other_model
):
    from embedpipe.encode.job import encode

    shutil.copytree(decoder[0] / "stage-1", tmp_path / "out" / "stage-1")
    encode(encoded_once[0], str(tmp_path / "other"), encode_config(model=other_model))
    message = error_of("train-decoder", encoded_once[0], tmp_path / "other", tmp_path / "out", *SMALL, "--stage", 2)
    assert "embeddings of another encoder" in message
    message = error_of("train-decoder", *encoded_once, tmp_path / "out", *SMALL, "--sizes", "4,16", "--stage", 2)
    assert "makes images of 8 pixels, but the recipe's stage 1 makes 4" in message
    # A stage of version 0.1: all that its card records agrees.
    written = tmp_path / "out" / "stage-1" / "run.json"
    facts = json.loads(written.read_text())
    card = card_from(facts["encoder"]).as_version_0_1()
    facts |= {"encoder": dataclasses.asdict(card), "fingerprint": card.fingerprint()}
    written.write_text(json.dumps(facts))
    words = ("train-decoder", *encoded_once, tmp_path / "out", *SMALL, "--sizes", "4,16", "--stage", 2)
    assert "stage-1: written before the activation was recorded" in error_of(*words)
    assert "makes images of 8 pixels" in error_of(*words, "--trust-old-card")


def test_images_that_are_missing_are_counted_and_refused(encoded_once, tmp_path):
    source, emb = encoded_once
    for name in ("00000.tar", "00002.tar"):
        (tmp_path / "shards").mkdir(exist_ok=True)
        shutil.copy2(Path(source) / name, tmp_path / "shards" / name)
    message = error_of("train-decoder", tmp_path / "shards", emb, tmp_path / "out", *SMALL)
    assert "of 21 rows 7 have no image" in message
    assert "`drop_unjoined=True`" in message
    outcome = result_of(
        "train-decoder", tmp_path / "shards", emb, tmp_path / "out", *SMALL, "--drop-unjoined", "--stage", 1
    )
    assert (outcome["join"]["joined"], outcome["join"]["shard_missing"]) == (14, 7)


def test_rows_of_a_loss_that_is_not_finite_are_named(encoded_once, tmp_path, monkeypatch):
    from dalle2_core.decoder.stage import DecoderStage

    whole = DecoderStage.loss

    def broken(self, batch, draws):
        found = whole(self, batch, draws)
        return type(found)(found.loss * float("nan")) if self.training else found

    monkeypatch.setattr(DecoderStage, "loss", broken)
    outcome = run("train-decoder", *encoded_once, tmp_path / "out", *SMALL, "--stage", 1)
    assert isinstance(outcome.exception, NonFiniteLoss)
    named = json.loads((tmp_path / "out" / "stage-1" / "nonfinite_batch.json").read_text())
    assert named["step"] == 1
    assert len(named["rows"]) == 6
    assert {"row", "src_shard", "key"} == set(named["rows"][0])


def test_a_dry_run_looks_at_the_data_and_writes_nothing(decoder, encoded_once, tmp_path):
    source, emb = encoded_once
    said = result_of("train-decoder", source, emb, tmp_path / "out", *SMALL, "--stage", 2, "--dry-run")
    assert said["train"] == [2]
    assert [part["stage"]["image_size"] for part in said["stages"]] == [8, 16]
    assert [part["train"]["steps"] for part in said["stages"]] == [4, 4]
    plan, outcome = said["plan"], decoder[1]
    assert plan["splits"] == {"train": outcome["train_rows"], "valid": outcome["valid_rows"]}
    assert plan["join"] == outcome["join"]
    assert plan["runs"] == {str(tmp_path / "out" / "stage-2"): {"steps": 4, "done": 0, "left": 4}}
    # Shards that were touched since are read, and a third of the images is gone.
    (tmp_path / "shards").mkdir()
    for name in ("00000.tar", "00002.tar"):
        shutil.copyfile(Path(source) / name, tmp_path / "shards" / name)
    words = ["train-decoder", tmp_path / "shards", emb, tmp_path / "out", *SMALL, "--dry-run"]
    assert "of 21 rows 7 have no image" in error_of(*words)
    assert result_of(*words, "--drop-unjoined")["plan"]["join"]["joined"] == 14
    assert os.listdir(tmp_path) == ["shards"]
    words = ["train-decoder", *encoded_once, decoder[0], *SMALL, "--dry-run"]
    assert [run["left"] for run in result_of(*words)["plan"]["runs"].values()] == [0, 0]
    assert "was 20, now 30" in error_of(*words, "--timesteps", 30)


def test_a_stage_may_read_the_captions_tokens(encoded_once, encode_config, tmp_path):
    from embedpipe.encode.job import encode

    encode(encoded_once[0], str(tmp_path / "emb"), encode_config(stage={"text_tokens": True}))
    arguments = ["train-decoder", encoded_once[0], tmp_path / "emb", tmp_path / "out", *SMALL, "--text-tokens"]
    assert result_of(*arguments)["complete"]
    first, second = (stage.unet.config for stage in load_decoder(tmp_path / "out").cascade)
    assert (first.cond_on_text_encodings, second.cond_on_text_encodings) == (True, False)
    message = error_of(*arguments, "--set", "stages.1.network.max_text_len=2")
    assert "stage 1 takes up to 2" in message
    assert "stages.1.network.max_text_len=" in message


class Blocks(torch.nn.Module):
    """An autoencoder whose latents are the means of 2 x 2 pixels."""

    latent_channels, downsampling = 3, 2
    latent_mean, latent_std = torch.zeros(3), torch.ones(3)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 2)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=2, mode="nearest")


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """The folder of such an autoencoder, and how many images each of its calls encoded."""
    counted = []

    class Counting(Blocks):
        def encode(self, pixels):
            counted.append(len(pixels))
            return super().encode(pixels)

    monkeypatch.setitem(AUTOENCODERS, "blocks", lambda folder, device: Counting())
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"kind": "blocks", "format_version": 1}')
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"numbers")
    return tmp_path / "vae", counted


def test_a_stage_in_latents_takes_its_autoencoder_along(encoded_once, tmp_path, blocks):
    arguments = ["train-decoder", *encoded_once, tmp_path / "out", *SMALL, "--vae", blocks[0]]
    assert list(result_of(*arguments, "--dry-run")["plan"]["runs"]) == [
        str(tmp_path / "out" / f"stage-{n}") for n in (1, 2)
    ]
    assert result_of(*arguments)["complete"]
    shutil.rmtree(blocks[0])
    loaded = load_decoder(tmp_path / "out")
    assert (loaded.stage(1).size, loaded.stage(2).size) == (4, 16)
    assert loaded.stage(1).vae is not None
    assert loaded.stage(2).vae is None


def test_latents_are_made_once_and_train_as_images_do(encoded_once, tmp_path, blocks):
    folder, counted = blocks
    options = [*SMALL, "--vae", folder, "--stage", 1]
    rows = result_of("train-decoder", *encoded_once, tmp_path / "plain", *options)["train_rows"]
    kept = ["train-decoder", *encoded_once, tmp_path / "kept", *options, "--cache-latents"]
    counted.clear()
    result_of(*kept)
    once = sum(counted)
    (latents,) = (tmp_path / "kept" / "stage-1").glob("latents-*.npy")
    assert np.load(latents).shape == (rows, 3, 4, 4)
    for one, other in zip(weights(tmp_path / "plain", 1).values(), weights(tmp_path / "kept", 1).values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    shutil.rmtree(tmp_path / "kept" / "stage-1" / "checkpoints")
    counted.clear()
    result_of(*kept)
    assert sum(counted) == once - rows, "a second training finds them; only held-out images are encoded"


def test_latents_of_other_images_are_made_anew(encoded_once, tmp_path, blocks):
    stage = tmp_path / "out" / "stage-1"
    stage.mkdir(parents=True)
    (stage / "latents-0123456789abcdef.npy").write_bytes(b"of other images")
    options = [*SMALL, "--vae", blocks[0], "--stage", 1, "--cache-latents"]
    result_of("train-decoder", *encoded_once, tmp_path / "out", *options)
    (latents,) = stage.glob("latents-*.npy")
    assert latents.name != "latents-0123456789abcdef.npy"


def test_latents_stay_on_the_machine_where_the_output_is_in_a_store(encoded_once, tmp_path, blocks, monkeypatch):
    monkeypatch.setenv("EMBEDPIPE_CACHE", str(tmp_path / "cache"))
    out = f"memory://latents-{tmp_path.name}/decoder"
    result_of(
        "train-decoder", *encoded_once, out, *SMALL, "--vae", blocks[0], "--stage", 1, "--cache-latents", "--steps", 2
    )
    there = files.walk(out)
    assert "stage-1/model.safetensors" in there
    assert [path for path in there if "latents" in path] == []
    assert len(list((tmp_path / "cache").rglob("latents-*.npy"))) == 1


def test_a_preset_in_latents_is_refused_without_an_autoencoder(encoded_once, tmp_path):
    said = str(run("train-decoder", *encoded_once, tmp_path / "out", "--preset", "tiny-latent").exception)
    assert said == "`preset='tiny-latent'` works in the latents of an autoencoder. Give `vaes`"
    assert not (tmp_path / "out").exists()


def test_without_a_preset_a_run_goes_on_with_the_one_it_was_begun_with(encoded_once, tmp_path):
    """The usual one has changed since; another command would be refused, and the same one is not to be."""
    fresh, older = tmp_path / "fresh", tmp_path / "older"
    few = [*SMALL, "--stage", "1"]
    result_of("train-decoder", *encoded_once, fresh, *few)
    assert json.loads((fresh / "stage-1" / "run.json").read_text())["network"]["patch_size"] == 2
    result_of("train-decoder", *encoded_once, older, *few, "--preset", "tiny")
    assert json.loads((older / "stage-1" / "run.json").read_text())["network"]["patch_size"] == 1
    before = weights(older, 1)
    result_of("train-decoder", *encoded_once, older, *few)  # finished
    shutil.rmtree(older / "stage-1" / "checkpoints" / "step-000000004")
    (older / "stage-1" / "run.json").unlink()
    result_of("train-decoder", *encoded_once, older, *few)  # interrupted
    assert all(np.array_equal(it, before[name]) for name, it in weights(older, 1).items())
