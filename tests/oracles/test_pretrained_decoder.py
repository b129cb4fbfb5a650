"""Decoders of diffusers through our interface against diffusers' own calls, on random weights: the same pictures."""

import dataclasses
import json
import shutil
import socket

import pytest
import torch

from dalle2_core.errors import CheckpointError
from embedpipe import trust_model
from embedpipe.errors import InputError, ModelError, OptionError, RunMismatch, UntrustedModel
from embedpipe.unclip.generate.pretrained.adapter import open_adapter
from embedpipe.unclip.generate.pretrained.calls import Drawing
from embedpipe.unclip.generate.pretrained.decoder import PretrainedDecoder
from embedpipe.unclip.generate.pretrained.folder import open_pipeline
from embedpipe.unclip.generate.pretrained.tower import refuse_another_tower, tower_of
from tests import tiny_pipelines

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
WIDTH, SIZE, STEPS = 16, 16, 3
TEXTS = ["a", "bc"]
EMBED = 4 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(7))
NEGATIVE = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(8))
MAKE = {"kandinsky": tiny_pipelines.kandinsky, "stable_unclip": tiny_pipelines.stable_unclip}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Name → (folder, diffusers' pipeline)."""
    root = tmp_path_factory.mktemp("pipelines")
    made = {name: (root / name, make(root / name)) for name, make in MAKE.items()}
    return made | {"inpaint": (root / "inpaint", tiny_pipelines.kandinsky(root / "inpaint", fills_in=True))}


def load(folder, dtype=torch.float32):
    return PretrainedDecoder(open_pipeline(f"diffusers:{folder}").with_weights(), "cpu", dtype)


def generators(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def theirs(pipeline, guidance, **keywords):
    """[n, 3, h, w] of diffusers' own call."""
    made = pipeline(
        image_embeds=EMBED, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=guidance,
        generator=generators(), output_type="np", **keywords,
    )  # fmt: skip
    return torch.from_numpy(made.images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", MAKE)
def test_pictures_are_those_of_diffusers(pipelines, name, guidance):
    folder, pipeline = pipelines[name]
    heard = []
    made = load(folder).draw(EMBED, generators(), Drawing(STEPS, guidance, SIZE, NEGATIVE), TEXTS, heard.append)
    more = {"negative_image_embeds": NEGATIVE.expand(2, -1)} if name == "kandinsky" else {"prompt": TEXTS}
    torch.testing.assert_close(made, theirs(pipeline, guidance, **more), rtol=0, atol=1e-6)
    assert made.std() > 0.05
    assert heard == [1, 2, 3]


def picture_and_mask():
    kept = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    kept[:, :6] = True
    return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), kept


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_begin_with_another_as_diffusers_has_it(pipelines, guidance):
    folder, pipeline = pipelines["kandinsky"]
    picture, _ = picture_and_mask()
    heard = []
    how = Drawing(6, guidance, SIZE, NEGATIVE, start=picture, strength=0.5)
    made = load(folder).draw(EMBED, generators(), how, on_drawn=heard.append)
    begins = diffusers.KandinskyV22Img2ImgPipeline(**pipeline.components)
    begins.set_progress_bar_config(disable=True)
    expected = begins(
        image_embeds=EMBED, negative_image_embeds=NEGATIVE.expand(2, -1), image=[picture[None]] * 2, strength=0.5,
        height=SIZE, width=SIZE, num_inference_steps=6, guidance_scale=guidance, generator=generators(),
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
    assert heard == [1, 2, 3]
    assert how.taken == 3


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Name → (folder, adapter, diffusers' pipeline with it)."""
    root, made = tmp_path_factory.mktemp("adapted"), {}
    for name in ("base", "xl"):
        pipeline = tiny_pipelines.base_model(root / name, xl=name == "xl")
        adapter = tiny_pipelines.ip_adapter(root / f"{name}.safetensors", pipeline.unet)
        pipeline.load_ip_adapter(root, subfolder="", weight_name=adapter.name, image_encoder_folder=None)
        pipeline.set_ip_adapter_scale(0.7)
        made[name] = root / name, adapter, pipeline
    return made


def adapted_pipeline(pipeline, mode):
    name = type(pipeline).__name__.replace("Pipeline", f"{mode}Pipeline")
    none = {"add_watermarker": False} if "XL" in name else {"safety_checker": None, "requires_safety_checker": False}
    wanted = {it: part for it, part in pipeline.components.items() if it not in ("safety_checker", "image_encoder")}
    made = getattr(diffusers, name)(**wanted, **none)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("mode", ["", "Img2Img", "Inpaint"])
@pytest.mark.parametrize("name", ["base", "xl"])
def test_a_base_model_draws_by_an_adapter_as_diffusers_does(adapted, name, mode, guidance):
    folder, file, pipeline = adapted[name]
    adapter = open_adapter(str(file), 0.7)
    decoder = PretrainedDecoder(open_pipeline(f"diffusers:{folder}", adapter).with_weights(), "cpu", torch.float32)
    picture, kept = picture_and_mask()
    more = {"Img2Img": {"start": picture, "strength": 0.5}, "Inpaint": {"known": (picture, kept)}}.get(mode, {})
    made = decoder.draw(EMBED, generators(), Drawing(4, guidance, SIZE, **more), TEXTS)
    embeds = torch.cat((torch.zeros_like(EMBED), EMBED)) if guidance > 1 else EMBED
    told = {"Img2Img": {"image": picture.repeat(2, 1, 1, 1), "strength": 0.5},
            "Inpaint": {"image": picture.repeat(2, 1, 1, 1), "mask_image": (~kept).float().repeat(2, 1, 1, 1),
                        "strength": 1.0, "height": SIZE, "width": SIZE}}  # fmt: skip
    expected = adapted_pipeline(pipeline, mode)(
        prompt=TEXTS, ip_adapter_image_embeds=[embeds[:, None]], num_inference_steps=4, guidance_scale=guidance,
        generator=generators(), output_type="pt", **told.get(mode, {"height": SIZE, "width": SIZE}),
    ).images  # fmt: skip
    where = ~kept if mode == "Inpaint" else torch.ones_like(kept)
    torch.testing.assert_close(made[..., where], expected[..., where], rtol=0, atol=1e-6)
    other = decoder.draw(-EMBED, generators(), Drawing(4, guidance, SIZE, **more), TEXTS)
    assert (other - made).abs().max() > 1e-4, "the embeddings count"


def test_adapters_that_are_refused(adapted, pipelines, tmp_path):
    folder, file, _ = adapted["base"]
    with pytest.raises(OptionError, match="draws from texts; of image embeddings it draws by an IP-Adapter"):
        open_pipeline(f"diffusers:{folder}")
    with pytest.raises(OptionError, match="takes image embeddings as it is"):
        open_pipeline(f"diffusers:{pipelines['kandinsky'][0]}", open_adapter(str(file)))
    with pytest.raises(InputError, match="no such file"):
        open_adapter(str(tmp_path / "none.safetensors"))
    (tmp_path / "pickle.bin").write_bytes(b"PK")
    with pytest.raises(ModelError, match="no safetensors file"):
        open_adapter(str(tmp_path / "pickle.bin"))
    with pytest.raises(ModelError, match="no IP-Adapter that takes the embedding of an image"):
        open_adapter(str(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    another = open_pipeline(f"diffusers:{folder}", open_adapter(str(adapted["xl"][1])))
    with pytest.raises(CheckpointError, match="does not fit"):
        PretrainedDecoder(another, "cpu", torch.float32)
    found = open_pipeline(f"diffusers:{folder}", open_adapter(str(file)))
    assert found.tower.width == WIDTH
    assert found.digest() != another.digest()


def test_what_is_white_is_filled_in_as_diffusers_does_and_the_rest_is_kept(pipelines):
    folder, pipeline = pipelines["inpaint"]
    picture = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    kept = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    kept[:, :6] = True
    made = load(folder).draw(EMBED, generators(), Drawing(STEPS, 4.0, SIZE, NEGATIVE, (picture, kept)))
    expected = theirs(
        pipeline, 4.0, negative_image_embeds=NEGATIVE.expand(2, -1), image=(picture * 2 - 1).repeat(2, 1, 1, 1),
        mask_image=(~kept).float().repeat(2, 1, 1, 1),
    )  # fmt: skip
    torch.testing.assert_close(made[..., ~kept], expected[..., ~kept], rtol=0, atol=1e-6)
    assert torch.equal(made[..., kept], picture[:, kept].expand(2, -1, -1))


@pytest.mark.parametrize("name", MAKE)
def test_a_picture_depends_on_its_embedding_text_and_generator_alone(pipelines, name):
    decoder, how = load(pipelines[name][0]), Drawing(STEPS, 2.0, SIZE, NEGATIVE)
    both = decoder.draw(EMBED, generators(), how, TEXTS)
    second = decoder.draw(EMBED[1:], generators()[1:], how, TEXTS[1:])
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*MAKE, "adapted"])
def test_networks_that_wait_elsewhere_draw_the_same(pipelines, adapted, name):
    """The hooks are accelerate's own; here they move networks from the CPU to the CPU, no GPU being at hand."""
    folder = pipelines[name][0] if name in pipelines else adapted["base"][0]
    adapter = open_adapter(str(adapted["base"][1])) if name == "adapted" else None
    opened = open_pipeline(f"diffusers:{folder}", adapter)
    decoder = PretrainedDecoder(opened, "cpu", torch.float32, "model")
    how = Drawing(STEPS, 4.0, SIZE, NEGATIVE)
    made = [decoder.draw(EMBED, generators(), how, TEXTS) for _ in range(2)]
    usual = PretrainedDecoder(opened, "cpu", torch.float32).draw(EMBED, generators(), how, TEXTS)
    assert torch.equal(made[0], usual)
    assert torch.equal(made[1], usual)
    assert all(hasattr(decoder._parts[it], "_hf_hook") for it in ("unet", opened.family.autoencoder))


def test_layers_that_wait_elsewhere_hold_no_memory_on_the_device(pipelines):
    """Drawing itself needs a device that is not the CPU: accelerate takes both places for one there."""
    decoder = PretrainedDecoder(
        open_pipeline(f"diffusers:{pipelines['kandinsky'][0]}"), "cpu", torch.float32, "sequential"
    )
    decoder._pipeline("KandinskyV22Pipeline")
    assert {it.device.type for part in ("unet", "movq") for it in decoder._parts[part].parameters()} == {"meta"}


def test_half_precision(pipelines):
    made = load(pipelines["kandinsky"][0], torch.bfloat16).draw(EMBED, generators(), Drawing(STEPS, 4.0, SIZE))
    assert made.dtype == torch.float32
    assert bool(torch.isfinite(made).all())


def test_weights_of_half_precision_alone(pipelines, tmp_path):
    pipelines["kandinsky"][1].save_pretrained(tmp_path / "half", variant="fp16")
    assert load(tmp_path / "half").draw(EMBED, generators(), Drawing(STEPS, 1.0, SIZE)).shape == (2, 3, SIZE, SIZE)


def test_what_a_folder_says_of_itself(pipelines):
    found = {name: open_pipeline(f"diffusers:{folder}") for name, (folder, _) in pipelines.items()}
    assert {name: it.tower.width for name, it in found.items()} == dict.fromkeys(found, WIDTH)
    assert {name: it.fills_in for name, it in found.items()} == {
        "kandinsky": False, "stable_unclip": False, "inpaint": True,
    }  # fmt: skip
    assert {it.checked_size(None) for it in found.values()} == {SIZE}
    assert found["kandinsky"].digest() != found["inpaint"].digest()
    with pytest.raises(InputError, match="multiples of 4, not of 18 pixels. Give `image_size=16`"):
        found["kandinsky"].checked_size(18)


@pytest.fixture
def copy(pipelines, tmp_path):
    """A Kandinsky of one's own, and a way to change what its JSON files say."""
    folder = shutil.copytree(pipelines["kandinsky"][0], tmp_path / "copy")

    def change(file, **values):
        content = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps(content))
        return folder

    return change


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("model_index.json", {"_class_name": ["pipeline", "Evil"]}, "names a class of its own"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "draws from no image embedding that is known"),
        ("model_index.json", {"_class_name": None}, "names a class of its own"),
        ("model_index.json", {"unet": ["evil", "UNet2DConditionModel"]}, "unet is .* not a UNet2DConditionModel"),
        ("model_index.json", {"unet": ["diffusers", "Transformer2DModel"]}, "not a UNet2DConditionModel"),
        ("model_index.json", {"movq": None}, "movq is None"),
        ("model_index.json", {"scheduler": ["diffusers", "os.system"]}, "scheduler is"),
        ("unet/config.json", {"encoder_hid_dim_type": "text_proj"}, "takes no image embedding"),
        ("unet/config.json", {"in_channels": 5}, "takes 5 channels beside latents of 4"),
        ("unet/config.json", {"encoder_hid_dim": "x"}, "described in no way that is known"),
        ("movq/config.json", {"block_out_channels": 3}, "described in no way that is known"),
    ],
)
def test_folders_that_are_refused(copy, file, values, said):
    folder = copy(file, **values)
    with pytest.raises((ModelError, CheckpointError), match=said):
        open_pipeline(f"diffusers:{folder}")


def test_pickles_missing_and_damaged_weights_are_refused(copy):
    folder = copy("model_index.json")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="unet: it cannot be loaded"):
        load(folder)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="its weights are a pickle"):
        load(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load(folder)


def test_the_hub_is_asked_after_consent_alone(monkeypatch):
    asked = []

    def nowhere(host, *more, **keywords):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(UntrustedModel, match="so nothing is asked of the hub"):
        open_pipeline("diffusers:somebody/decoder")
    assert not asked
    trust_model("hf-hub:somebody/decoder")
    with pytest.raises(ModelError, match="somebody/decoder: the hub did not give it"):
        open_pipeline("diffusers:somebody/decoder")
    with pytest.raises(InputError, match="no such folder"):
        open_pipeline("diffusers:/no/such/folder")


def test_another_tower_is_refused_with_the_one_it_wants(tiny_encoder):
    card = tiny_encoder.card
    with pytest.raises(RunMismatch, match="of 768 values, but D takes those of OpenCLIP's ViT-bigG-14.*laion2b_s39b"):
        refuse_another_tower(tower_of(1280, None), "D", 768, "P")
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024}
    wanted = tower_of(1024, vision)
    refuse_another_tower(wanted, "D", 1024, "P", dataclasses.replace(card, model="ViT-H-14", dim=1024))
    refuse_another_tower(wanted, "D", 1024, "P", card)  # a folder: nothing is known of it but the width
    with pytest.raises(RunMismatch, match="embeddings of ViT-g-14, but D takes those of OpenCLIP's ViT-H-14"):
        refuse_another_tower(wanted, "D", 1024, "P", dataclasses.replace(card, model="ViT-g-14", dim=1024))
    with pytest.raises(ValueError, match="projects to 1024 values, its unet takes 768"):
        tower_of(768, vision)
