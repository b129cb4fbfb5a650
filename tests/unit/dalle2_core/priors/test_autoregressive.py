"""The autoregressive prior: its codes, its order, what it draws."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from dalle2_core.priors.pca_codes import PCAQuantizer
from dalle2_core.rng import PerSampleRNG
from dalle2_core.types import PriorBatch, TextCondition

NETWORK = PriorNetworkConfig(dim=16, embed_dim=16, depth=2, heads=2, dim_head=8, max_text_len=5)


def pairs(rows=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(rows, 16, generator=draw), dim=-1)
    return text, F.normalize(text @ torch.randn(16, 16, generator=draw) + 0.2, dim=-1)


def make(**keywords):
    torch.manual_seed(0)
    config = AutoregressiveConfig(**{"codes": 5, "buckets": 7, **keywords})
    return AutoregressivePrior(NETWORK, config).fit(*pairs()).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(2, 60), st.integers(1, 12), st.integers(2, 40), st.integers(0, 2**31))
def test_codes_are_within_half_a_bucket_of_the_components(rows, codes, buckets, seed):
    data = torch.randn(rows, 12, generator=seeded(seed)) * torch.linspace(0.1, 3, 12) + 5
    quantizer = PCAQuantizer(12, codes, buckets)
    quantizer.fit(data)
    found = quantizer.encode(data)
    assert found.shape == (rows, codes)
    assert int(found.min()) >= 0
    assert int(found.max()) < buckets
    places, back = ((it - quantizer.mean) @ quantizer.components.T for it in (data, quantizer.decode(found)))
    assert bool(((places - back).abs() <= quantizer.width * 0.5 + 1e-4).all())
    # What is decoded is not moved by coding it again.
    torch.testing.assert_close(quantizer.decode(quantizer.encode(quantizer.decode(found))), quantizer.decode(found))


def test_components_are_those_of_numpys_singular_values():
    data = torch.randn(200, 10, generator=seeded()) @ torch.randn(10, 10, generator=seeded(1))
    quantizer = PCAQuantizer(10, 4, 16)
    quantizer.fit(data)
    centred = data.double().numpy() - data.double().numpy().mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    likeness = np.abs((quantizer.components.numpy() * vectors[:4]).sum(1))
    np.testing.assert_allclose(likeness, 1, atol=1e-4)
    assert float(quantizer.kept_variance) == pytest.approx((values[:4] ** 2).sum() / (values**2).sum(), abs=1e-5)


def test_all_components_and_fine_buckets_give_the_image_back():
    _, image = pairs(rows=100)
    quantizer = PCAQuantizer(16, 16, 4096)
    quantizer.fit(image)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(image)), image, atol=2e-3, rtol=0)


def test_a_dimension_without_variance_stays_finite():
    quantizer = PCAQuantizer(4, 4, 8)
    quantizer.fit(torch.ones(5, 4))
    out = quantizer.decode(quantizer.encode(torch.ones(2, 4)))
    torch.testing.assert_close(out, torch.ones(2, 4))
    with pytest.raises(ShapeError, match="1 rows have no principal components"):
        quantizer.fit(torch.ones(1, 4))


@pytest.mark.parametrize("tokens", [None, 3])
def test_one_by_one_gives_what_all_at_once_gives(tokens):
    """The most likely code at each turn, from the memory of what came before and from the whole sequence."""
    prior = make()
    text, _ = pairs(rows=4)
    given_tokens = None if tokens is None else torch.randn(4, tokens, 16, generator=seeded())
    mask = None if tokens is None else torch.arange(tokens) < torch.tensor([3, 1, 2, 0])[:, None]
    condition = TextCondition(text, given_tokens, mask)
    likeness = torch.tensor([8, 9, 15, 10])
    seen = []

    def most_likely(logits):
        seen.append(logits)
        return logits.argmax(dim=-1)

    with torch.no_grad():
        codes = prior.net.generate(likeness, condition, most_likely)
        logits = prior.net(codes, likeness, condition)
    assert codes.shape == (4, 5)
    torch.testing.assert_close(torch.stack(seen, dim=1), logits, atol=1e-5, rtol=1e-5)


def test_a_code_is_predicted_from_those_before_it_alone():
    prior = make()
    text, image = pairs(rows=3)
    codes, likeness = prior.quantizer.encode(image), torch.tensor([8, 9, 10])
    with torch.no_grad():
        logits = prior.net(codes, likeness, TextCondition(text))
        for place in range(5):
            other = codes.clone()
            other[:, place] = (other[:, place] + 1) % 7
            changed = (prior.net(other, likeness, TextCondition(text)) - logits).abs().amax(dim=(0, 2)) > 1e-6
            assert changed.tolist() == [it > place for it in range(5)]


def test_codes_are_drawn_as_often_as_the_network_says():
    prior = make()
    with torch.no_grad():
        prior.net.causal_transformer.project_out.weight.zero_()
    prior.quantizer.fit(torch.randn(500, 16, generator=seeded()))
    text = pairs(rows=1)[0].expand(6000, -1)
    out = prior.sample(text, num_samples_per_batch=1, normalize=False, generator=seeded())
    counts = torch.stack([torch.bincount(it, minlength=7) for it in prior.quantizer.encode(out).T])
    # Equal logits: each of seven codes a seventh of the time, within five standard errors.
    assert bool(((counts / 6000 - 1 / 7).abs() < 5 * (6 / 49 / 6000) ** 0.5).all())


def test_it_overfits_one_batch_and_draws_it():
    prior = make(codes=16, buckets=64, cond_drop_prob=0.0, temperature=0.5, likeness_buckets=2)
    text, image = pairs(rows=6)
    prior.fit(text, image)
    prior.likeness_edges.fill_(-1.0)  # so that all rows are in the bucket that is drawn from
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        loss = prior.loss(PriorBatch(text, image), seeded(step)).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    likeness = prior.sample(text, num_samples_per_batch=4, generator=seeded()) @ image.T
    assert likeness.argmax(1).tolist() == list(range(6))


def test_guidance_moves_towards_the_conditional_logits():
    prior = make()
    text, _ = pairs(rows=4)
    assert not torch.equal(*(prior.sample(text, cond_scale=scale, generator=seeded()) for scale in (1.0, 3.0)))
    # With scale 0 the text does not matter, but for which candidate is kept.
    one, other = (
        prior.sample(it, cond_scale=0.0, num_samples_per_batch=1, generator=seeded()) for it in (text, text.flip(0))
    )
    assert torch.equal(one, other)
    with pytest.raises(ConfigError, match="needs a prior trained with cond_drop_prob above 0"):
        make(cond_drop_prob=0.0).sample(text, cond_scale=2.0)


def test_rows_do_not_depend_on_their_batch():
    prior = make()
    text, _ = pairs(rows=40)
    whole = prior.sample(text, generator=PerSampleRNG(3, 0, 40, torch.device("cpu")))
    parts = [
        prior.sample(text[start : start + 10], generator=PerSampleRNG(3, start, 10, torch.device("cpu")))
        for start in range(0, 40, 10)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def test_mistakes_are_named(tmp_path):
    for keywords, text in (
        ({"codes": 0}, "codes is 0"),
        ({"buckets": 1}, "buckets is 1"),
        ({"temperature": 0}, "temp"),
    ):
        with pytest.raises(ConfigError, match=text):
            AutoregressiveConfig(**keywords)
    with pytest.raises(ConfigError, match="num_samples_per_batch is 0"):
        make().sample(pairs()[0], num_samples_per_batch=0)
    make().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["autoregressive"]["bucket"] = config["autoregressive"].pop("buckets")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'bucket'; did you mean buckets"):
        AutoregressivePrior.load(tmp_path)


def test_more_codes_than_dimensions_are_as_many_as_there_are():
    assert make(codes=500).net.codes == 16
