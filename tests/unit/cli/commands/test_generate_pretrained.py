"""generate with decoders of diffusers: encoder, prior and diffusers' own pipeline, joined at the right scale."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import embedpipe as library
from dalle2_core.priors.registry import load_prior
from dalle2_core.priors.unclip import UnclipConfig, UnclipPrior
from dalle2_core.rng import PerSampleRNG, derived_seed
from embedpipe import EmbeddingDataset
from embedpipe.errors import InputError
from embedpipe.unclip.generate.pretrained.decoder import PretrainedDecoder
from embedpipe.unclip.runs.record import write_run_record
from tests import tiny_pipelines

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
WIDTH, TEXT = 16, "a red bicycle"


@pytest.fixture(scope="module")
def made(encoded_once, tmp_path_factory):
    """Folders of pipelines and priors, and diffusers' pipelines themselves."""
    from embedpipe_cli.main import cli

    root, emb = tmp_path_factory.mktemp("pretrained"), encoded_once[1]
    ridge = ["train-prior", emb, root / "ridge", "--prior", "ridge", "--valid-share", "0.3", "--device", "cpu"]
    outcome = CliRunner().invoke(cli, list(map(str, ridge)), standalone_mode=False)
    assert outcome.exception is None, outcome.exception
    return {
        "kandinsky": tiny_pipelines.kandinsky(root / "kandinsky"),
        "inpaint": tiny_pipelines.kandinsky(root / "inpaint", fills_in=True),
        "stable": tiny_pipelines.stable_unclip(root / "stable"),
        "base": tiny_pipelines.base_model(root / "base"),
        "wide": tiny_pipelines.kandinsky(root / "wide", width=24),
        "root": root,
        "prior": converted(root / "prior", EmbeddingDataset(emb).card),
    }


def converted(folder, card):
    """A run such as `convert --emb` leaves it, of random weights."""
    torch.manual_seed(2)
    config = UnclipConfig(num_layers=1, num_attention_heads=2, attention_head_dim=8, timesteps=20, sample_timesteps=3,
                          raw=True)  # fmt: skip
    prior = UnclipPrior(config.network(WIDTH), config)
    with torch.no_grad():
        for weight in prior.net.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
        prior.net.clip_std.fill_(2.0)
    prior.save(folder)
    facts = {"recipe": {"prior": "unclip", "text_tokens": False}, "converted": True,
             "encoder": dataclasses.asdict(card), "fingerprint": card.fingerprint()}  # fmt: skip
    write_run_record(str(folder), "prior", facts)
    return prior


@pytest.fixture
def run(made, embedpipe, tmp_path):
    """Runs generate into tmp_path/out.png: three steps, guidance as the pipeline has it."""

    def start(*words, decoder="kandinsky", prior="prior", out="out.png"):
        priors = ["--prior", made["root"] / prior] if prior else []
        options = ["--decoder", f"diffusers:{made['root'] / decoder}", *priors, "--device", "cpu", "--steps", 3]
        return embedpipe("generate", *words, *options, "-o", tmp_path / out)

    return start


def pixels(tmp_path, name="000-00.png", out="out"):
    return np.asarray(Image.open(tmp_path / out / name)).astype(int)


def raw(embedded):
    return torch.from_numpy(embedded.rows * embedded.norms[:, None])


def nothing(encoder):
    with torch.no_grad():
        return encoder._model.encode_image(torch.zeros(1, 3, *encoder.card.preprocess.size)).float()


def drawn(pipeline, embeds, negative, guidance=4.0):
    """By diffusers' own call, uint8 [n, h, w, 3] as ints."""
    seeds = [derived_seed(0, "pretrained decoder", place) for place in range(len(embeds))]
    out = pipeline(
        image_embeds=embeds, negative_image_embeds=negative.expand(len(embeds), -1), height=16, width=16,
        num_inference_steps=3, guidance_scale=guidance, output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images  # fmt: skip
    return (out * 255).round().astype(int)


def failed(result, said):
    assert result.exit_code != 0
    assert said in " ".join(result.stderr.split()), result.stderr


def test_a_text_goes_raw_through_prior_and_pipeline(run, made, tmp_path, tiny_encoder):
    result = run(TEXT, "--n", 2)
    assert result.exit_code == 0, result.stderr
    text = raw(tiny_encoder.texts([TEXT])).repeat(2, 1)
    draws = PerSampleRNG(derived_seed(0, "prior"), 0, 2, torch.device("cpu"))
    embeds = made["prior"].sample(text, normalize=False, generator=draws)
    expected = drawn(made["kandinsky"], embeds, nothing(tiny_encoder))
    for place in range(2):
        assert np.abs(pixels(tmp_path, f"000-{place:02d}.png") - expected[place]).max() <= 2
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["settings"]["cond_scale"] == 4.0
    assert record["decoder"]["family"] == "Kandinsky 2.2"
    assert record["decoder"]["image_sizes"] == [16]
    assert len(record["decoder"]["sha256"]) == 64
    assert [it["of"] for it in record["images"]] == [TEXT] * 2
    assert all(abs(it["score"]) <= 1 for it in record["images"])


def test_a_prior_of_norm_1_is_brought_to_the_norm_of_its_data(run, made, tmp_path, tiny_encoder, encoded_once):
    assert run(TEXT, "--n", 1, prior="ridge").exit_code == 0
    dataset = EmbeddingDataset(encoded_once[1])
    norm = float(dataset.norms("image")(np.arange(len(dataset))).mean())
    assert json.loads((tmp_path / "out.json").read_text())["decoder"]["image_norm"] == pytest.approx(norm)
    text = torch.from_numpy(tiny_encoder.texts([TEXT]).rows)
    unit = load_prior(made["root"] / "ridge").sample(text)
    expected = drawn(made["kandinsky"], norm * unit.float(), nothing(tiny_encoder))[0]
    assert np.abs(pixels(tmp_path) - expected).max() <= 2
    assert run(TEXT, "--n", 1, "--image-norm", norm * 3, prior="ridge", out="other.png").exit_code == 0
    assert np.abs(pixels(tmp_path, out="other") - expected).max() > 3


def test_a_norm_that_nothing_knows_is_asked_for(run, made, tmp_path):
    np.save(tmp_path / "unit.npy", np.eye(WIDTH, dtype=np.float32)[:2])
    failed(run("--embedding", tmp_path / "unit.npy", "--guidance", 1, prior=None), "Give --image-norm")
    refused = run("--embedding", tmp_path / "unit.npy", "--image-norm", 0, decoder="stable", prior=None)
    failed(refused, "must be a number above 0")
    # Stable unCLIP's own statistics say it.
    assert run("--embedding", tmp_path / "unit.npy", "--n", 1, decoder="stable", prior=None).exit_code == 0


def test_stored_embeddings(run, made, tmp_path, tiny_encoder, tiny_model):
    rows = 4 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))
    np.save(tmp_path / "raw.npy", rows.numpy())
    words = ["--embedding", tmp_path / "raw.npy", "--n", 1]
    failed(run(*words, prior=None), "Give --model and --pretrained, or --guidance 1")
    assert run(*words, "--guidance", 1, "--batch-size", 2, prior=None).exit_code == 0
    expected = drawn(made["kandinsky"], rows, rows[:1], guidance=1.0)
    for row in range(3):
        assert np.abs(pixels(tmp_path, f"{row:03d}-00.png") - expected[row]).max() <= 2
    assert run(*words, "--model", tiny_model, prior=None, out="guided.png").exit_code == 0
    expected = drawn(made["kandinsky"], rows, nothing(tiny_encoder))
    assert np.abs(pixels(tmp_path, "002-00.png", "guided") - expected[2]).max() <= 2


@pytest.fixture
def pictures(tmp_path):
    mask = Image.new("L", (20, 20), 0)
    mask.paste(255, (10, 0, 20, 20))
    mask.save(tmp_path / "mask.png")
    for name, colour in (("red", (200, 30, 30)), ("blue", (20, 20, 220))):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    return tmp_path / "red.png", tmp_path / "blue.png", tmp_path / "mask.png"


def test_variations_and_the_way_between_two_pictures(run, made, tmp_path, tiny_encoder, pictures):
    from embedpipe.images.decode import decode

    red, blue, _ = pictures
    assert run("--from-image", red, "--n", 3).exit_code == 0
    seen = [pixels(tmp_path, f"000-{place:02d}.png") for place in range(3)]
    found = decode(red.read_bytes(), tiny_encoder.card.preprocess, tiny_encoder.card.rules)
    embeds = raw(tiny_encoder.images(found.pixels[None]).wait()).repeat(3, 1)
    expected = drawn(made["kandinsky"], embeds, nothing(tiny_encoder))
    assert max(np.abs(one - other).max() for one, other in zip(seen, expected, strict=True)) <= 2
    assert np.abs(seen[0] - seen[1]).max() > 3
    assert run("--interpolate", red, blue, "--n", 3, out="way.png").exit_code == 0
    way = [pixels(tmp_path, f"000-{place:02d}.png", "way") for place in range(3)]
    assert np.abs(way[0] - expected[0]).max() <= 2
    assert np.abs(way[0] - way[2]).max() > 0


def test_pictures_begin_with_another_one(run, made, tmp_path, pictures):
    import diffusers

    from embedpipe.unclip.generate.outputs import picture_of

    red = pictures[0]
    rows = 4 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5))
    np.save(tmp_path / "raw.npy", rows.numpy())
    words = ["--embedding", tmp_path / "raw.npy", "--guidance", 1, "--n", 1, "--init-image", red]
    result = run(*words, "--strength", 0.7, prior=None)
    assert result.exit_code == 0, result.stderr
    pipeline = diffusers.KandinskyV22Img2ImgPipeline(**made["kandinsky"].components)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [derived_seed(0, "pretrained decoder", place) for place in range(2)]
    expected = pipeline(
        image_embeds=rows, negative_image_embeds=rows, image=[picture_of(str(red), 16)[None]] * 2, strength=0.7,
        height=16, width=16, num_inference_steps=3, guidance_scale=1.0, output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images  # fmt: skip
    for row in range(2):
        assert np.abs(pixels(tmp_path, f"{row:03d}-00.png") - (expected[row] * 255).round().astype(int)).max() <= 2
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["request"]["strength"] == 0.7
    failed(run(*words, prior=None), "of 3 steps the share --strength 0.3 is none. Give --strength 0.33 or more")
    assert run(TEXT, "--init-image", red, "--strength", 1, "--n", 1, out="text.png").exit_code == 0


def test_a_picture_changes_towards_a_text(run, made, tmp_path, tiny_encoder, pictures):
    from dalle2_core import text_diff
    from embedpipe.images.decode import decode

    red = pictures[0]
    result = run("a blue hat", "--text-diff", red, "--base-text", "a red hat", "--n", 3)
    assert result.exit_code == 0, result.stderr
    found = decode(red.read_bytes(), tiny_encoder.card.preprocess, tiny_encoder.card.rules)
    picture = raw(tiny_encoder.images(found.pixels[None]).wait())[0]
    text, base = torch.from_numpy(tiny_encoder.texts(["a blue hat", "a red hat"]).rows)
    rows = picture.norm() * text_diff(picture / picture.norm(), text, base, [0.0, 0.25, 0.5])
    torch.testing.assert_close(rows[0], picture)
    expected = [drawn(made["kandinsky"], rows[place : place + 1], nothing(tiny_encoder))[0] for place in range(3)]
    for place in range(3):
        assert np.abs(pixels(tmp_path, f"000-{place:02d}.png") - expected[place]).max() <= 4
    assert np.abs(expected[2] - expected[0]).max() > 12
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["mode"] == "text_diff"
    assert [it["of"] for it in record["images"]] == ["0%", "25%", "50%"]
    failed(run("a", "b", "--text-diff", red), "--text-diff goes towards one text, and 2 are given")
    failed(run("a", "--text-diff", red, "--n", 1), "--text-diff needs two pictures or more")


def test_a_base_model_draws_by_its_adapter(run, made, tmp_path, tiny_encoder, pictures):
    root, base = made["root"], made["base"]
    file = tiny_pipelines.ip_adapter(root / "adapter.safetensors", base.unet)
    failed(run(TEXT, decoder="base"), "by an IP-Adapter. Give its file with --ip-adapter")
    words = ["--ip-adapter", file, "--ip-scale", 0.7, "--n", 2]
    result = run(TEXT, *words, decoder="base")
    assert result.exit_code == 0, result.stderr
    text = raw(tiny_encoder.texts([TEXT])).repeat(2, 1)
    draws = PerSampleRNG(derived_seed(0, "prior"), 0, 2, torch.device("cpu"))
    embeds = made["prior"].sample(text, normalize=False, generator=draws)
    base.load_ip_adapter(str(root), subfolder="", weight_name=file.name, image_encoder_folder=None)
    base.set_ip_adapter_scale(0.7)
    expected = base(
        prompt=[TEXT] * 2, ip_adapter_image_embeds=[torch.cat((torch.zeros_like(embeds), embeds))[:, None]],
        height=16, width=16, num_inference_steps=3, guidance_scale=7.5, output_type="np",
        generator=[torch.Generator().manual_seed(derived_seed(0, "pretrained decoder", place)) for place in range(2)],
    ).images  # fmt: skip
    for place in range(2):
        found = pixels(tmp_path, f"000-{place:02d}.png")
        assert np.abs(found - (expected[place] * 255).round().astype(int)).max() <= 2
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["decoder"]["ip_adapter"], record["decoder"]["ip_scale"]) == (str(file), 0.7)
    red, blue, mask = pictures
    for way in (["--from-image", red], ["--interpolate", red, blue], ["--inpaint", red, mask],
                [TEXT, "--init-image", red], [TEXT, "--text-diff", red]):  # fmt: skip
        result = (
            run(*way, *words, "--strength", 0.7, decoder="base")
            if "--init-image" in way
            else run(*way, *words, decoder="base")
        )
        assert result.exit_code == 0, result.stderr
    wide = tiny_pipelines.ip_adapter(root / "wide.safetensors", base.unet, width=24)
    failed(run(TEXT, "--ip-adapter", wide, decoder="base"), "image embeddings of 16 values, but diffusers:")
    failed(run(TEXT, "--ip-adapter", file), "takes image embeddings as it is. Leave --ip-adapter out")


@pytest.mark.parametrize("words", [(), (TEXT,)])
def test_inpainting_keeps_what_is_black(run, tmp_path, pictures, words):
    red, _, mask = pictures
    result = run(*words, "--inpaint", red, mask, "--n", 2, decoder="inpaint")
    assert result.exit_code == 0, result.stderr
    one, other = (pixels(tmp_path, f"000-{place:02d}.png") for place in range(2))
    assert np.abs(one[:, :7] - [200, 30, 30]).max() <= 1
    assert np.abs(one[:, 9:] - other[:, 9:]).max() > 3


def test_stable_unclip_is_told_the_text(run, tmp_path, pictures):
    for name, words in {"a": ["a red"], "b": ["a blue"], "none": []}.items():
        result = run(*words, "--from-image", pictures[0], "--n", 1, decoder="stable", out=f"{name}.png")
        assert result.exit_code == 0, result.stderr
    a, b, none = (pixels(tmp_path, out=name) for name in ("a", "b", "none"))
    assert np.abs(a - b).max() > 0
    assert np.abs(a - none).max() > 0
    assert run(TEXT, "--n", 2, "--best-of", 2, decoder="stable").exit_code == 0
    scores = [it["score"] for it in json.loads((tmp_path / "out.json").read_text())["images"]]
    assert scores == sorted(scores, reverse=True)


def test_the_same_pictures_in_batches_of_any_size_and_where_memory_runs_out(run, tmp_path, monkeypatch):
    assert run(TEXT, "--n", 3).exit_code == 0
    assert run(TEXT, "--n", 3, "--batch-size", 1, out="one.png").exit_code == 0
    draw = PretrainedDecoder.draw

    def poor(self, embeds, *more):
        if len(embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(self, embeds, *more)

    monkeypatch.setattr(PretrainedDecoder, "draw", poor)
    result = run(TEXT, "--n", 3, out="poor.png")
    assert "going on with 1 pictures at once" in result.stderr
    for name in ("one", "poor"):
        for place in range(3):
            file = f"000-{place:02d}.png"
            assert np.abs(pixels(tmp_path, file) - pixels(tmp_path, file, name)).max() <= 1


def test_guidance_of_a_converted_prior_leads_away_from_the_empty_text(run, tmp_path):
    assert run(TEXT, "--n", 1).exit_code == 0
    assert run(TEXT, "--n", 1, "--prior-guidance", 3, out="guided.png").exit_code == 0
    assert np.abs(pixels(tmp_path) - pixels(tmp_path, out="guided")).max() > 0


def test_dry_run_loads_no_weights_and_makes_nothing(run, made, tmp_path):
    result = run(TEXT, "--dry-run", "--image-size", 24)
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["images"] == 4
    assert plan["decoder"] == {"folder": f"diffusers:{made['root'] / 'kandinsky'}", "family": "Kandinsky 2.2",
                               "image_sizes": [24], "dtype": "float32"}  # fmt: skip
    assert not (tmp_path / "out.png").exists()


def test_held_out_captions_beside_true_pictures(run, tmp_path, encoded_once):
    result = run("--beside", encoded_once[1], "--rows", 2, "--n", 1, prior="ridge")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "out.json").read_text())["beside"]["captions"] == 2


def test_what_is_refused(run, tmp_path, pictures):
    red, blue, mask = pictures
    np.save(tmp_path / "wide.npy", np.ones((2, 24), np.float32))
    failed(run(TEXT, decoder="wide"), "image embeddings of 16 values, but diffusers:")
    failed(run("--embedding", tmp_path / "wide.npy"), "image embeddings of 24 values, but diffusers:")
    failed(run("--from-image", red, "--eta", 0.5), "draws by its own scheduler: it takes no --eta")
    failed(run("--interpolate", red, blue, "--sampler", "ddim"), "it takes no --sampler")
    failed(run(TEXT, "--guidance", "2,3"), "--guidance takes one value. Give 2.0")
    failed(run(TEXT, "--image-size", 18), "multiples of 4, not of 18 pixels. Give --image-size 16")
    failed(run(TEXT, "--from-image", red), "--from-image takes no text")
    failed(run(TEXT, prior=None), "a text needs a prior")
    failed(run("--inpaint", red, mask), "this decoder of Kandinsky 2.2 fills in no pictures")
    failed(run(TEXT, decoder="inpaint"), "only fills in pictures. Give --inpaint")
    failed(run("--inpaint", red, mask, decoder="stable"), "this decoder of Stable unCLIP fills in no pictures")
    failed(run(TEXT, "--init-image", red, decoder="stable"), "begins with no picture. Leave --init-image out")
    failed(run(TEXT, "--offload", "model"), "--offload spares the memory of a GPU, and the device is the CPU")
    failed(run(TEXT, "--strength", 0.5), "--strength is only of use with --init-image")
    failed(run(TEXT, "--init-image", red, "--strength", 2), "must be above 0 and at most 1")
    failed(run(TEXT, "--base-text", "a"), "--base-text is only of use with --text-diff")
    failed(run(TEXT, decoder="nowhere/at/all"), "no such folder, nor the name of a repository")


def test_from_python(made, tmp_path):
    folder = f"diffusers:{made['root'] / 'kandinsky'}"
    found = library.generate(TEXT, decoder=folder, prior=str(made["root"] / "prior"), num_images=2, steps=2)
    assert found.images.shape == (2, 3, 16, 16)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    with pytest.raises(InputError, match="`image_size` is for a decoder of diffusers"):
        library.generate(TEXT, decoder=str(tmp_path), image_size=64)
