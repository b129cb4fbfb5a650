"""Presets: complete, plain, and buildable."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from dalle2_core.errors import ConfigError
from dalle2_core.presets.prior import PRIOR_PRESETS, prior_preset

PARTS = {"network", "diffusion", "optim", "train", "text_tokens", "prior"}
PARTS |= {"ridge", "autoregressive", "contrastive", "unclip"}


@pytest.mark.parametrize("name", sorted(PRIOR_PRESETS))
def test_a_preset_is_plain_json(name):
    recipe = asdict(prior_preset(name))
    assert json.loads(json.dumps(recipe)).keys() == recipe.keys() == PARTS


@pytest.mark.parametrize("name", sorted(PRIOR_PRESETS))
def test_a_preset_builds_for_any_width(name):
    recipe = prior_preset(name)
    # One layer is enough to see that the parts fit; the paper's 24 would not fit in a test.
    recipe = replace(recipe, network=replace(recipe.network, depth=1))
    with torch.device("meta"):
        prior = recipe.build(96)
    assert prior.image_embed_dim == 96
    assert prior.net.dim == recipe.network.dim


def test_the_papers_prior_has_a_billion_parameters():
    with torch.device("meta"):
        net = prior_preset("paper").build(1024)
    assert 0.9e9 < sum(it.numel() for it in net.parameters()) < 1.6e9


def test_an_unknown_preset_names_the_near_one():
    with pytest.raises(ConfigError, match="no prior preset 'tinny'; did you mean tiny"):
        prior_preset("tinny")
