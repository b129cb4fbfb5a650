"""What holds for every prior in the registry: a new one is tested before its author writes a test."""

import json

import pytest
import torch
from torch.nn import functional as F

from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.presets.prior import prior_recipe
from dalle2_core.priors.autoregressive import AutoregressiveConfig
from dalle2_core.priors.config import PriorConfig
from dalle2_core.priors.registry import PRIORS, load_prior
from dalle2_core.types import PriorBatch, Trainable

SMALL = {
    "network": PriorNetworkConfig(depth=2, heads=2, dim_head=8),
    "diffusion": PriorConfig(timesteps=10, sample_timesteps=4),
    "autoregressive": AutoregressiveConfig(codes=6, buckets=8),
}


def pairs(rows=40, dim=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(rows, dim, generator=draw), dim=-1)
    image = F.normalize(text @ torch.randn(dim, dim, generator=draw) + 0.2, dim=-1)
    return text, image


@pytest.fixture(params=sorted(PRIORS))
def prior(request):
    torch.manual_seed(0)
    return prior_recipe(prior=request.param, **SMALL).build(16).fit(*pairs()).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_samples_are_unit_vectors_of_the_texts_shape_and_leave_it_alone(prior):
    text, _ = pairs(rows=5, seed=1)
    before = text.clone()
    out = prior.sample(text, generator=seeded())
    assert out.shape == text.shape
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    raw = prior.sample(text, generator=seeded(), normalize=False)
    torch.testing.assert_close(F.normalize(raw, dim=-1), out, atol=1e-5, rtol=0)
    assert torch.equal(text, before)


def test_samples_are_a_function_of_the_generator(prior):
    text, _ = pairs(rows=5, seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(prior.sample(text, generator=seeded(1)), prior.sample(text, generator=seeded(1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_and_loading_by_kind_gives_the_same_samples(prior, tmp_path):
    text, _ = pairs(rows=5, seed=1)
    prior.save(tmp_path)
    loaded = load_prior(tmp_path).eval()
    assert type(loaded) is type(prior)
    assert torch.equal(loaded.sample(text, generator=seeded()), prior.sample(text, generator=seeded()))
    other = tmp_path / "again"
    loaded.save(other)
    assert (other / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    assert (other / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_trained_prior_learns_and_the_others_are_ready(prior):
    text, image = pairs()
    if not isinstance(prior, Trainable):
        assert list(prior.parameters()) == []
        return
    batch = PriorBatch(text, image)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = prior.loss(batch, seeded(step)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_another_width_is_refused(prior):
    with pytest.raises(ShapeError, match=r"text_embed is \(2, 8\); this model takes \[b, 16\]"):
        prior.sample(torch.randn(2, 8))


def test_damage_is_said(prior, tmp_path):
    prior.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_prior(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="prior format 99"):
        load_prior(tmp_path)


def test_what_is_no_prior_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_prior(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "decoder", "format_version": 1}')
    with pytest.raises(CheckpointError, match="holds a 'decoder', which is no prior; known: .*diffusion-prior"):
        load_prior(tmp_path)
    with pytest.raises(ConfigError, match="no prior 'rige'; did you mean ridge"):
        prior_recipe(prior="rige")
