"""Recipes of decoders: presets that fit, changes for all stages or each, and mistakes that are named."""

from dataclasses import replace

import pytest
import torch

from dalle2_core.decoder.decoder import Decoder
from dalle2_core.decoder.stage_config import LowresConfig
from dalle2_core.errors import ConfigError
from dalle2_core.presets import DECODER_PRESETS
from dalle2_core.presets.decoder import decoder_preset


def with_part(recipe, number, **changes):
    """The recipe with `network` or `stage` settings of a stage replaced."""
    part = recipe.stages[number - 1]
    changed = replace(part, **{name: replace(getattr(part, name), **values) for name, values in changes.items()})
    return replace(recipe, stages=(*recipe.stages[: number - 1], changed, *recipe.stages[number:]))


@pytest.mark.parametrize("name", DECODER_PRESETS)
def test_stages_of_every_preset_fit_each_other(name):
    recipe = decoder_preset(name)
    for number, part in enumerate(recipe.stages, 1):
        fitted = recipe.fitted(number, 512, None, None)
        assert fitted.network.sees_image_embed == (number == 1)
        assert fitted.network.lowres_cond == (number > 1)
        for size in (part.stage.image_size, part.stage.random_crop_size or part.stage.image_size):
            assert size % fitted.network.size_multiple == 0


def test_a_stage_is_the_same_whether_or_not_others_are_built():
    recipe = decoder_preset("tiny").changed(dims=(8,), sizes=(8, 16))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    stages = [recipe.build(number, 6) for number in (1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    again = recipe.build(2, 6)
    assert all(torch.equal(it, again.state_dict()[name]) for name, it in stages[1].state_dict().items())
    assert Decoder.from_stages(stages).stage(2).config.lowres.size == 8


def test_changes_are_for_all_stages_or_each():
    recipe = decoder_preset("tiny").changed(
        sizes=(16, 32, 64), dims=(24, 16, 8), timesteps=(30,), objectives=("v", "x0", "noise")
    )
    assert [it.stage.image_size for it in recipe.stages] == [16, 32, 64]
    assert [recipe.fitted(number, 6, None, None).stage.lowres for number in (2, 3)] == [
        LowresConfig(16),
        LowresConfig(32),
    ]
    assert [it.network.dim for it in recipe.stages] == [24, 16, 8]
    assert [it.stage.predicts for it in recipe.stages] == ["v", "x0", "noise"]
    assert {it.stage.timesteps for it in recipe.stages} == {30}
    assert max(it.stage.sampling_steps for it in recipe.stages) <= 30
    assert len(decoder_preset("tiny").changed(sizes=(64,)).stages) == 1


def test_mistakes_are_named():
    recipe = decoder_preset("tiny")
    with pytest.raises(ConfigError, match="64, 32 do not grow; order them from small to large"):
        recipe.changed(sizes=(64, 32))
    with pytest.raises(ConfigError, match="dims: 3 values for 2 stages"):
        recipe.changed(dims=(8, 8, 8))
    with pytest.raises(ConfigError, match="there is no stage 0"):
        recipe.part(0)
    moved = with_part(recipe, 1, stage={"image_size": 48})
    with pytest.raises(ConfigError, match="stage 2 starts from an image of 32 pixels .* stage 1 makes one of 48"):
        moved.fitted(2, 512, None, None)
    with pytest.raises(ConfigError, match="stage 1 is the first and starts from noise alone"):
        with_part(recipe, 1, stage={"lowres": LowresConfig(16)}).fitted(1, 512, None, None)
    for name, value, there in (("image_embed_dim", 7, 512), ("channels", 4, 3), ("channels_out", 6, 3)):
        with pytest.raises(ConfigError, match=f"stage 1: network.{name} is {value}, .* ask for {there}"):
            with_part(recipe, 1, network={name: value}).fitted(1, 512, None, None)
    told = with_part(recipe, 1, network={"cond_on_text_encodings": True, "text_embed_dim": 16})
    with pytest.raises(ConfigError, match=r"network\.text_embed_dim is 16, .* ask for 32"):
        told.fitted(1, 512, 32, None)
    assert told.fitted(1, 512, 16, None).network.text_embed_dim == 16


def test_widths_that_follow_from_the_data_need_not_be_said():
    recipe = decoder_preset("tiny")
    for number, name in ((2, "cond_on_image_embeds"), (1, "cond_on_text_encodings")):
        recipe = with_part(recipe, number, network={name: True})
    assert recipe.fitted(2, 6, None, None).network.image_embed_dim == 6
    assert recipe.fitted(1, 6, 10, None).network.text_embed_dim == 10
    assert recipe.build(2, 6).unet.condition.image_to_tokens is not None
