"""generate: texts, pictures and embeddings become the same pictures each time, and no other model mixes in."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from dalle2_core import Decoder
from embedpipe import EmbeddingDataset
from embedpipe.clip_model.encoder_card import BEFORE_ACTIVATION
from embedpipe.errors import InputError
from embedpipe.unclip.generate.request import Request
from embedpipe.unclip.runs.record import write_run_record
from tests import tiny_vae
from tests.tiny_unet import unet

WIDTH = 16
KEYS = ("prior", "decoder")


def write_decoder(folder, card, networks=None, sizes=(8, 16), **keywords):
    """A cascade of random weights, as train-decoder would leave it."""
    networks = networks or (unet(image_embed_dim=WIDTH), unet(seed=1))
    decoder = Decoder(networks, image_sizes=sizes, **{"timesteps": 20, "sample_timesteps": 3, **keywords})
    torch.manual_seed(3)
    for stage in decoder.cascade:
        nn.init.normal_(stage.unet.to_out.weight, std=0.2)
    decoder.save(folder)
    facts = {"encoder": dataclasses.asdict(card), "fingerprint": card.fingerprint()}
    write_run_record(f"{folder}/stage-1", "decoder-stage", facts)
    return str(folder)


@pytest.fixture(scope="module")
def runs(encoded_once, tmp_path_factory):
    """Folders of a diffusion prior, a ridge and a decoder, all for the tiny encoder."""
    from embedpipe_cli.main import cli

    root, emb = tmp_path_factory.mktemp("runs"), encoded_once[1]
    small = {"train.steps": 2, "train.batch_size": 4, "network.dim": 16, "network.depth": 1, "network.heads": 2,
             "diffusion.timesteps": 10, "diffusion.sample_timesteps": 3}  # fmt: skip
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    for name in ("diffusion", "ridge"):
        words = ["train-prior", emb, root / name, "--prior", name, "--valid-share", "0.3", "--device", "cpu", *settings]
        outcome = CliRunner().invoke(cli, list(map(str, words)), standalone_mode=False)
        assert outcome.exception is None, outcome.exception
    card = EmbeddingDataset(emb).card
    return {"prior": str(root / "diffusion"), "ridge": str(root / "ridge"),
            "decoder": write_decoder(root / "decoder", card)}  # fmt: skip


@pytest.fixture
def run(runs, embedpipe, tmp_path):
    """Runs generate with prior and decoder, into tmp_path/out.png; keywords replace them, None leaves one out."""

    def start(*words, out="out.png", **instead):
        folders = {name: instead.get(name, runs[name]) for name in KEYS}
        options = [word for name, folder in folders.items() if folder for word in (f"--{name}", folder)]
        return embedpipe("generate", *words, *options, "--device", "cpu", "-o", tmp_path / out)

    return start


def pixels(path):
    return np.asarray(Image.open(path))


def paint(path, size=(20, 20), colour=(200, 30, 30)):
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    """A picture, another one, and a mask whose right half is white."""
    mask = Image.new("L", (20, 20), 0)
    mask.paste(255, (10, 0, 20, 20))
    mask.save(tmp_path / "mask.png")
    return (
        paint(tmp_path / "red.png"),
        paint(tmp_path / "blue.png", colour=(20, 20, 220)),
        tmp_path / "mask.png",
    )


def test_a_grid_single_pictures_and_every_setting(run, runs, tmp_path):
    result = run("a red bicycle", "soup", "--n", 3, "--guidance", "2,1.5", "--steps", "4,2", "--candidates", 4)
    assert result.exit_code == 0, result.stderr
    assert "6 pictures" in result.stdout
    names = sorted(it.name for it in (tmp_path / "out").iterdir())
    assert names == [f"{text:03d}-{number:02d}.png" for text in range(2) for number in range(3)]
    assert pixels(tmp_path / "out" / names[0]).shape == (16, 16, 3)
    assert Image.open(tmp_path / "out.png").width >= 3 * 160
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["settings"]["cond_scale"] == [2.0, 1.5]
    assert record["settings"]["steps"] == [4, 2]
    assert record["settings"]["seed"] == 0
    assert record["prior"]["folder"] == runs["prior"]
    assert record["decoder"]["image_sizes"] == [8, 16]
    assert [it["file"] for it in record["images"]] == names
    assert [it["of"] for it in record["images"]] == ["a red bicycle"] * 3 + ["soup"] * 3
    assert record["versions"]["torch"]


def test_the_same_command_makes_the_same_pictures_and_another_seed_others(run, tmp_path):
    for name, more in (("one", ()), ("again", ("--batch-size", 1)), ("other", ("--seed", 1))):
        assert run("a red bicycle", "--n", 2, *more, out=f"{name}.png").exit_code == 0
    one, again, other = (pixels(tmp_path / name / "000-01.png").astype(int) for name in ("one", "again", "other"))
    assert abs(one - again).max() <= 1
    assert abs(one - other).max() > 3


def test_pictures_are_what_the_python_calls_make(run, runs, tmp_path, tiny_encoder):
    from dalle2_core import DALLE2, load_prior
    from dalle2_core.types import EmbeddedText

    assert run("a red bicycle", "--n", 2, "--seed", 5).exit_code == 0
    text = torch.from_numpy(tiny_encoder.texts(["a red bicycle"]).rows)
    dalle2 = DALLE2(load_prior(runs["prior"]), Decoder.load(runs["decoder"]))
    expected = dalle2(EmbeddedText(text), num_images=2, seed=5)
    for number, image in enumerate(expected):
        made = pixels(tmp_path / "out" / f"000-{number:02d}.png")
        assert np.abs(made - image.permute(1, 2, 0).numpy() * 255).max() <= 2


def test_a_prior_of_raw_embeddings_is_given_the_raw_text(run, runs, tmp_path, tiny_encoder):
    from dalle2_core import DALLE2
    from dalle2_core.priors.unclip import UnclipConfig, UnclipPrior
    from dalle2_core.types import EmbeddedText

    torch.manual_seed(4)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "timesteps": 20, "sample_timesteps": 3}
    config = UnclipConfig(**sizes, raw=True)
    prior = UnclipPrior(config.network(WIDTH), config).eval()
    prior.save(tmp_path / "raw")
    facts = json.loads((Path(runs["prior"]) / "run.json").read_text())
    write_run_record(str(tmp_path / "raw"), "prior", facts)
    result = run("a red bicycle", "--n", 1, "--prior-guidance", 2, prior=str(tmp_path / "raw"))
    assert result.exit_code == 0, result.stderr
    text, empty = (tiny_encoder.texts([it]) for it in ("a red bicycle", ""))
    prior.set_null_text(EmbeddedText(torch.from_numpy(empty.rows * empty.norms[:, None])))
    dalle2, made = DALLE2(prior, Decoder.load(runs["decoder"])), pixels(tmp_path / "out" / "000-00.png")
    off = {}
    for name, rows in {"raw": text.rows * text.norms[:, None], "of norm 1": text.rows}.items():
        expected = dalle2(EmbeddedText(torch.from_numpy(rows)), seed=0, prior_cond_scale=2.0)[0]
        off[name] = np.abs(made - expected.permute(1, 2, 0).numpy() * 255).mean()
    assert off["raw"] < 0.5 < off["of norm 1"], off  # the command computes in the machine's precision


def test_a_text_that_is_cut_is_told(run):
    long = run("a red bicycle " * 20, "a cat", "--n", 1)
    assert long.exit_code == 0, long.stderr
    assert "note: 1 text (50.0%) was longer than 16 tokens; 46 tokens cut" in long.stderr
    assert "cut" not in run("a cat", "--n", 1).stderr


def test_scores_are_cosines_of_the_stored_pictures(run, tmp_path, tiny_encoder):
    from embedpipe.images.decode import decode

    assert run("a red bicycle", "--n", 3).exit_code == 0
    record = json.loads((tmp_path / "out.json").read_text())
    text = tiny_encoder.texts(["a red bicycle"]).rows[0]
    for image in record["images"]:
        decoded = decode((tmp_path / "out" / image["file"]).read_bytes(), tiny_encoder.card.preprocess)
        expected = float(tiny_encoder.images(decoded.pixels[None]).wait().rows[0] @ text)
        assert abs(image["score"] - expected) < 1e-2  # the command computes in the machine's precision


def test_best_of_keeps_the_nearest(run, tmp_path):
    run("a red bicycle", "--n", 6, out="all.png")
    run("a red bicycle", "--n", 2, "--best-of", 3, out="best.png")
    scores = {name: [it["score"] for it in json.loads((tmp_path / f"{name}.json").read_text())["images"]]
              for name in ("all", "best")}  # fmt: skip
    assert np.allclose(scores["best"], sorted(scores["all"], reverse=True)[:2], atol=2e-3)


def test_captions_of_a_file_come_after_those_given(run, tmp_path):
    (tmp_path / "more.txt").write_text("soup\n\na cat on a mat\n")
    result = run("a red bicycle", "--captions", tmp_path / "more.txt", "--n", 1)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert [it["of"] for it in record["images"]] == ["a red bicycle", "soup", "a cat on a mat"]
    (tmp_path / "table.csv").write_text("title,id\na dog,1\n")
    assert run("--captions", tmp_path / "table.csv", "--caption-column", "title", "--n", 1).exit_code == 0
    assert [it.name for it in (tmp_path / "out").iterdir()] == ["000-00.png"]  # an earlier run's are gone


def test_any_prior_will_do(run, runs):
    assert run("a red bicycle", prior=runs["ridge"]).exit_code == 0
    result = run("a red bicycle", "--prior-steps", 4, prior=runs["ridge"])
    assert result.exit_code == 2
    assert "a ridge-prior has no prior_steps; leave it out" in result.stderr


def test_variations_of_a_picture(run, tmp_path, pictures):
    result = run("--from-image", pictures[0], "--n", 3, "--eta", 0.5, prior=None)
    assert result.exit_code == 0, result.stderr
    made = [pixels(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len({it.tobytes() for it in made}) == 3
    assert json.loads((tmp_path / "out.json").read_text())["mode"] == "variations"


def test_filling_in_keeps_what_is_black_in_the_mask(run, tmp_path, pictures):
    image, _, mask = pictures
    for name, words, prior in (("told", ["a red bicycle"], {}), ("untold", [], {"prior": None})):
        result = run(*words, "--inpaint", image, mask, "--n", 2, out=f"{name}.png", **prior)
        assert result.exit_code == 0, result.stderr
        made = [pixels(path) for path in sorted((tmp_path / name).iterdir())]
        for it in made:
            assert (it[:, :7] == (200, 30, 30)).all()
            assert (it[:, 10:] != (200, 30, 30)).any()
        assert (made[0] != made[1]).any()


def test_on_the_way_from_one_picture_to_another(run, tmp_path, pictures):
    result = run("--interpolate", pictures[0], pictures[1], "--n", 3, prior=None)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert [it["of"] for it in record["images"]] == ["0%", "50%", "100%"]


def test_a_picture_changes_towards_a_text(run, tmp_path, pictures):
    words = ["--text-diff", pictures[0], "--base-text", "a red square"]
    result = run("a blue square", *words, "--n", 3, prior=None)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert [it["of"] for it in record["images"]] == ["0%", "25%", "50%"]
    made = [pixels(tmp_path / f"out/000-{place:02d}.png") for place in range(3)]
    assert run("--interpolate", pictures[0], pictures[1], "--n", 2, prior=None, out="way.png").exit_code == 0
    assert np.abs(made[0].astype(int) - pixels(tmp_path / "way/000-00.png")).max() <= 2  # both begin with the picture
    assert (made[0] != made[2]).any()


def test_stored_embeddings_need_no_prior_and_no_encoder(run, runs, tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    assert run("--embedding", tmp_path / "rows.npy", "--n", 2, prior=None).exit_code == 0
    assert len(list((tmp_path / "out").iterdir())) == 6
    np.save(tmp_path / "wide.npy", np.ones((2, 20), np.float32))
    result = run("--embedding", tmp_path / "wide.npy", prior=None)
    assert result.exit_code == 1
    assert "image_embed is (8, 20); this U-Net takes [8, 16]; are they from the encoder it was trained" in result.stderr


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(run, tmp_path):
    result = run("a red bicycle", "soup", "--n", 3, "--dry-run")
    told = json.loads(result.stdout)
    assert (told["images"], told["mode"]) == (6, "text")
    assert told["settings"]["num_images"] == 3
    assert told["encoder"]["model"]
    assert not (tmp_path / "out.png").exists()
    assert run("soup", "--dry-run", "--sampler", "dim").exit_code == 2  # checked all the same


def test_what_is_loaded_is_said_as_it_begins(run, runs, tmp_path, monkeypatch):
    from embedpipe_cli import display

    monkeypatch.setattr(display._PlainView, "show_doing", lambda view: view.line(f"{view.what}: {view.doing}"))
    said = run("soup", "--n", 1).stderr.splitlines()
    begun = [line.split(" ")[3] for line in said if line.startswith("generate: loading the ")]
    assert begun == ["decoder", "prior", "encoder"]
    assert said[said.index(f"generate: loading the prior {runs['prior']}") + 1] == "generate: making pictures"
    assert "generate: loading the encoder" not in run("soup", "--dry-run").stderr


def test_a_decoder_of_version_0_1_goes_with_a_newer_prior_where_somebody_says_so(run, encoded_once, tmp_path, pictures):
    card = EmbeddingDataset(encoded_once[1]).card
    old = write_decoder(tmp_path / "old", card.as_version_0_1())
    refused = run("a red bicycle", decoder=old)
    assert refused.exit_code == 1
    assert f"{old}: {BEFORE_ACTIVATION}; all else agrees" in refused.stderr
    assert run("a red bicycle", "--trust-old-card", decoder=old).exit_code == 0
    # By itself it is of version 0.1, and so is its encoder.
    alone = run("--from-image", pictures[0], decoder=old, prior=None)
    assert (alone.exit_code, "its encoder is built as version 0.1 built it" in alone.stderr) == (0, True), alone.stderr


def test_the_checksum_of_a_latent_stage_is_of_its_autoencoder_too(run, encoded_once, tmp_path):
    folder = tmp_path / "latent"
    card = EmbeddingDataset(encoded_once[1]).card
    write_decoder(folder, card, sizes=(16, 32), vae=(tiny_vae.vae(),))
    found = []
    for seed in (0, 1):
        tiny_vae.vae(seed).save(folder / "stage-1" / "vae")
        found.append(json.loads(run("soup", "--dry-run", decoder=folder).stdout)["decoder"]["sha256"])
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_json_is_the_record(run, tmp_path):
    result = run("a red bicycle", "--json")
    said = json.loads(result.stdout)
    written = json.loads((tmp_path / "out.json").read_text())
    assert said == {name: value for name, value in written.items() if name in said}


def test_models_of_different_encoders_are_refused(run, runs, encoded_once, other_model, tmp_path):
    card = EmbeddingDataset(encoded_once[1]).card
    stranger = write_decoder(tmp_path / "stranger", dataclasses.replace(card, weights_sha256="1" * 64))
    result = run("a red bicycle", decoder=stranger)
    assert result.exit_code == 1
    assert "trained on embeddings of different encoders" in result.stderr
    assert "Give a prior and a decoder of one encoder" in result.stderr
    result = run("a red bicycle", "--model", other_model)
    assert result.exit_code == 1
    assert "another encoder" in result.stderr or "weights_sha256" in result.stderr
    wide = write_decoder(tmp_path / "wide", card, networks=(unet(image_embed_dim=20), unet(seed=1)))
    result = run("a red bicycle", decoder=wide)
    assert "predicts image embeddings of 16 values and the decoder takes 20" in result.stderr


def test_a_decoder_that_says_no_encoder_needs_to_be_told(run, runs, tiny_model, tmp_path, pictures):
    Decoder.load(runs["decoder"]).save(tmp_path / "bare")
    assert run("a red bicycle", decoder=tmp_path / "bare").exit_code == 0  # the prior knows
    result = run("--from-image", pictures[0], decoder=tmp_path / "bare", prior=None)
    assert "does not say which encoder its image embeddings are of. Give --model and --pretrained" in result.stderr
    words = ("--from-image", pictures[0], "--model", tiny_model)
    assert run(*words, decoder=tmp_path / "bare", prior=None).exit_code == 0


def test_a_decoder_that_reads_the_text_is_told_it(run, encoded_once, tmp_path, pictures):
    card = EmbeddingDataset(encoded_once[1]).card
    told = unet(image_embed_dim=WIDTH, text_embed_dim=32, cond_on_text_encodings=True)
    decoder = write_decoder(tmp_path / "told", card, networks=(told, unet(seed=1)))
    assert run("a red bicycle", "--n", 1, decoder=decoder, out="one.png").exit_code == 0
    np.save(tmp_path / "rows.npy", np.ones((1, WIDTH), np.float32))
    words = ("--embedding", tmp_path / "rows.npy", "--n", 1)
    for name, text in (("bicycle", "a red bicycle"), ("soup", "soup")):
        assert run(text, *words, decoder=decoder, prior=None, out=f"{name}.png").exit_code == 0
    assert (pixels(tmp_path / "bicycle/000-00.png") != pixels(tmp_path / "soup/000-00.png")).any()
    result = run("soup", "a red bicycle", *words, decoder=decoder, prior=None)
    assert "all pictures are told the same text, and 2 are given. Give one, or none" in result.stderr
    # Without a text it is told the empty one.
    assert run(*words, decoder=decoder, prior=None, out="silent.png").exit_code == 0
    assert (pixels(tmp_path / "silent/000-00.png") != pixels(tmp_path / "soup/000-00.png")).any()
    for mode in (("--from-image", pictures[0]), ("--interpolate", *pictures[:2])):
        made = {}
        for name, text in (("bicycle", ["a red bicycle"]), ("empty", [""]), ("none", [])):
            result = run(*text, *mode, "--n", 3, decoder=decoder, prior=None, out=f"{name}.png")
            assert result.exit_code == 0, result.stderr
            made[name] = pixels(tmp_path / name / "000-01.png")
        assert (made["bicycle"] != made["empty"]).any()
        assert (made["none"] == made["empty"]).all()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "nothing is asked for"),
        (["soup", "--from-image", "red.png", "--interpolate", "red.png", "blue.png"], 2, "exclude each other"),
        (["soup", "--caption-column", "a"], 2, "only of use with --captions"),
        (["soup", "--steps", "4,many"], 2, "write one number, or one for each stage"),
        (["soup", "--steps", "4,3,2"], 2, "steps has 3 values for 2 stages"),
        (["soup", "--steps", "99"], 2, "99 sampling steps of a schedule of 20 timesteps"),
        (["soup", "--from-image", "red.png"], 1, "--from-image takes no text: this decoder reads none"),
        (["--from-image", "red.png", "--sampler", "ddpm"], 2, "it takes no --sampler"),
        (["--from-image", "red.png", "--steps", "4,2"], 2, "takes one number of --steps, the first stage's"),
        (["--from-image", "red.png", "--best-of", "2"], 2, "--best-of ranks pictures by a text"),
        (["--interpolate", "red.png", "blue.png", "--n", "1"], 2, "needs two pictures or more"),
        (["--text-diff", "red.png"], 1, "--text-diff goes towards one text, and 0 are given"),
        (["soup", "--text-diff", "red.png", "--eta", "1"], 2, "it takes no --eta"),
        (["soup", "--init-image", "red.png"], 1, "--init-image is for decoders of diffusers"),
        (["soup", "--offload", "model"], 2, "--offload is for a decoder of diffusers"),
        (["soup", "--ip-adapter", "red.png"], 1, "no safetensors file"),
        (["--from-image", "gone.png"], 1, "gone.png"),
        (["--from-image", "text.txt"], 1, "no image format that embedpipe reads"),
        (["soup", "--inpaint", "red.png", "small.png"], 1, "the mask is 10 × 10 pixels"),
        (["soup", "--inpaint", "red.png", "black.png"], 1, "the mask is black all over"),
        (["--captions", "rows.npy"], 1, "holds embeddings, not captions"),
    ],
    ids=str,
)
def test_mistakes_are_named(run, tmp_path, pictures, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    paint("small.png", (10, 10))
    paint("black.png", colour=(0, 0, 0))
    Path("text.txt").write_text("no picture")
    np.save("rows.npy", np.ones((1, WIDTH), np.float32))
    result = run(*words)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not Path("out.png").exists()


def test_folders_that_hold_no_run_are_named(run, runs, tmp_path):
    result = run("soup", decoder=tmp_path / "gone")
    assert "gone: no such file or folder" in result.stderr
    result = run("soup", decoder=runs["prior"])
    assert result.exit_code == 1
    result = run("soup", prior=runs["decoder"])
    assert "Give a folder written by `embedpipe train-prior`" in result.stderr
    result = run("soup", prior=None)
    assert "a text needs a prior, which turns it into an image embedding. Give its run with --prior" in result.stderr
    assert run("soup", out="out.jpg").exit_code == 2


def test_out_of_memory_it_says_so_and_goes_on(run, tmp_path, monkeypatch):
    from dalle2_core.networks.unet import Unet

    run("soup", "--n", 4, out="expected.png")
    forward = Unet.forward

    def little_memory(self, x, *rest):
        if len(x) > least:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, *rest)

    monkeypatch.setattr(Unet, "forward", little_memory)
    least = 2
    result = run("soup", "--n", 4)
    assert result.exit_code == 0, result.stderr
    assert "out of memory: going on with 2 pictures at once" in result.stderr
    made = [pixels(tmp_path / name / "000-03.png").astype(int) for name in ("expected", "out")]
    assert abs(made[0] - made[1]).max() <= 1
    least = 0
    result = run("soup", "--n", 4)
    assert result.exit_code == 1
    assert "error: cpu: no memory for a single image. Free some, or give --device cpu" in result.stderr


def test_a_request_is_one_thing():
    assert Request(("a",)).mode == "text"
    assert Request(embedding="a.npy").mode == "embedding"
    with pytest.raises(InputError, match="nothing is asked for"):
        Request()


def test_the_pixels_of_the_grid_are_those_of_the_pictures(run, tmp_path):
    assert run("soup", "--n", 1).exit_code == 0
    single = pixels(tmp_path / "out" / "000-00.png")
    enlarged = Image.fromarray(single).resize((160, 160), Image.Resampling.NEAREST)
    sheet = Image.open(io.BytesIO((tmp_path / "out.png").read_bytes())).convert("RGB")
    left, top = 8, 40
    assert np.array_equal(np.asarray(sheet.crop((left, top, left + 160, top + 160))), np.asarray(enlarged))


def test_scores_by_loops():
    from embedpipe.unclip.generate.held_out import caption_scores

    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(*it, 4, generator=draw), dim=-1) for it in ((6,), (3,)))
    texts[2] = texts[1]  # two captions that are the same
    own = torch.tensor([0, 0, 1, 1, 2, 2])
    found = caption_scores(images, texts, own)
    mine, others, wins = [], [], []
    for image, caption in zip(images, own.tolist(), strict=True):
        mine.append(float(image @ texts[caption]))
        for other in {0, 1, 2} - {caption}:
            likeness = float(image @ texts[other])
            others.append(likeness)
            wins.append(0.5 if {caption, other} == {1, 2} else float(mine[-1] > likeness))
    assert np.allclose((found.own, found.others, found.nearer), [np.mean(it) for it in (mine, others, wins)])


def test_held_out_captions_beside_the_true_pictures(run, runs, encoded_once, tmp_path):
    emb = encoded_once[1]
    result = run("--beside", emb, "--rows", 3, "--n", 2)
    assert result.exit_code == 0, result.stderr
    assert "how often nearer" in result.stdout
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["beside"]["captions"] == 3
    dataset, texts = EmbeddingDataset(emb), [it["of"] for it in record["images"]][::2]
    captions = dataset.column("caption").to_pylist()
    # Of rows that the prior's run held out, and what is said of the true ones is what their embeddings say.
    from embedpipe.load import splits

    names = splits(dataset, None, 0.3)
    rows = [row for row, (name, caption) in enumerate(zip(names, captions, strict=True))
            if name == "valid" and caption in texts]  # fmt: skip
    assert set(texts) == {captions[row] for row in rows}
    assert record["beside"]["true"]["own"] == pytest.approx(
        float((dataset.image[rows].astype(float) * dataset.text[rows]).sum(axis=1).mean()), abs=2e-3
    )
    sheet = Image.open(tmp_path / "out.png").convert("RGB")
    assert sheet.width == 4 * (160 + 8) + 8
    assert -1 <= record["beside"]["nearest_training"] <= 1


def test_the_nearest_in_training_is_the_nearest(runs, encoded_once):
    from embedpipe.unclip.generate.held_out import compare_held_out, open_held_out
    from embedpipe.unclip.generate.models import Models

    held = open_held_out(Models(runs["decoder"], runs["prior"]), encoded_once[1], 3)
    assert not set(held.rows) & set(held.train)
    wanted = held.train[[2, 0, 5]]
    made = torch.from_numpy(held.dataset.image[wanted].astype(np.float32))
    found, nearest = compare_held_out(held, made, [0, 1, 2])
    assert nearest.tolist() == wanted.tolist()
    assert found.nearest_training == pytest.approx(1, abs=1e-3)


def test_beside_needs_runs_of_one_split(run, runs, encoded_once, tmp_path):
    emb = encoded_once[1]
    card = EmbeddingDataset(emb).card
    decoder = write_decoder(tmp_path / "decoder", card)
    facts = {"encoder": dataclasses.asdict(card), "fingerprint": card.fingerprint(),
             "split": {"column": None, "valid_share": 0.5}}  # fmt: skip
    write_run_record(f"{decoder}/stage-1", "decoder-stage", facts)
    result = run("--beside", emb, decoder=decoder)
    assert "trained on another split" in result.stderr
    assert run("--beside", emb, prior=None).exit_code == 1
    assert run("soup", "--beside", emb).exit_code == 2


def test_n_is_the_number_of_pictures(embedpipe, runs, tmp_path):
    words = ["generate", "a pear", "--prior", runs["prior"], "--decoder", runs["decoder"], "-o", tmp_path / "p.png"]
    made = embedpipe(*words, "-n", 2, "--json", "--device", "cpu")
    assert made.exit_code == 0, made.stderr
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["000-00.png", "000-01.png"]


def test_in_bfloat16_pictures_are_nearly_the_same_and_the_encoder_is_exact(run, tmp_path):
    for precision in ("float32", "bfloat16"):
        assert run("soup", "--n", 2, "--precision", precision, out=f"{precision}.png").exit_code == 0
    one, other = (pixels(tmp_path / it / "000-01.png").astype(int) for it in ("float32", "bfloat16"))
    assert 0 < np.abs(one - other).mean() < 8
    assert json.loads((tmp_path / "bfloat16.json").read_text())["precision"] == "bfloat16"
    told = [
        run("soup", "--n", 1, "--precision", precision, "--inpaint", *named(tmp_path), out=f"in-{precision}.png")
        for precision in ("float32", "bfloat16")
    ]
    assert [it.exit_code for it in told] == [0, 0]


def named(root):
    paint(root / "own.png")
    Image.new("L", (20, 20), 255).save(root / "all.png")
    return root / "own.png", root / "all.png"


def test_variations_take_the_precision_too(run, tmp_path, pictures):
    for precision in ("float32", "bfloat16"):
        words = ("--from-image", pictures[0], "--n", 2, "--precision", precision)
        assert run(*words, prior=None, out=f"{precision}.png").exit_code == 0
    one, other = (pixels(tmp_path / it / "000-01.png").astype(int) for it in ("float32", "bfloat16"))
    assert 0 < np.abs(one - other).mean() < 30
