"""Presets: complete, plain, and buildable."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from dalle2_core.errors import ConfigError
from dalle2_core.networks.unclip_transformer import UnclipTransformer, UnclipTransformerConfig
from dalle2_core.presets import PRIOR_PRESETS
from dalle2_core.presets.prior import prior_preset

PARTS = {"network", "diffusion", "optim", "train", "text_tokens", "prior"}
PARTS |= {"lora", "ridge", "autoregressive", "contrastive", "unclip"}


@pytest.mark.parametrize("name", sorted(PRIOR_PRESETS))
def test_a_preset_is_plain_json(name):
    recipe = asdict(prior_preset(name))
    assert json.loads(json.dumps(recipe)).keys() == recipe.keys() == PARTS


@pytest.mark.parametrize("name", sorted(PRIOR_PRESETS))
def test_a_preset_builds_for_any_width(name):
    recipe = prior_preset(name)
    # One layer is enough to see that the parts fit; the paper's 24 would not fit in a test.
    small = {"network": replace(recipe.network, depth=1), "unclip": replace(recipe.unclip, num_layers=1)}
    recipe = replace(recipe, **small)
    with torch.device("meta"):
        prior = recipe.build(96)
    assert prior.image_embed_dim == 96
    if recipe.prior == "diffusion":
        assert prior.net.dim == recipe.network.dim


def test_the_papers_prior_has_a_billion_parameters():
    with torch.device("meta"):
        net = prior_preset("paper").build(1024)
    assert 0.9e9 < sum(it.numel() for it in net.parameters()) < 1.6e9


@pytest.mark.parametrize(("name", "width", "bound"), [("kandinsky-2-2", 1280, 10.0), ("karlo", 768, 5.0)])
def test_the_priors_of_diffusers_have_their_sizes(name, width, bound):
    recipe = prior_preset(name)
    with torch.device("meta"):
        prior = recipe.build(width)
        theirs = UnclipTransformer(UnclipTransformerConfig(embedding_dim=width))  # diffusers' own defaults but for that
    assert {key: it.shape for key, it in prior.net.state_dict().items()} == {
        key: it.shape for key, it in theirs.state_dict().items()
    }
    assert prior.net.config == theirs.config
    assert (recipe.raw, recipe.text_tokens, prior.config.clip_sample_range) == (True, True, bound)
    assert 0.95e9 < sum(it.numel() for it in prior.parameters()) < 1.1e9


def test_an_unknown_preset_names_the_near_one():
    with pytest.raises(ConfigError, match="no prior preset 'tinny'; did you mean tiny"):
        prior_preset("tinny")
