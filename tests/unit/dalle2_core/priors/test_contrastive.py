"""The small prior without diffusion."""

import pytest
import torch
from torch.nn import functional as F

from dalle2_core.errors import ConfigError
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.priors.contrastive import ContrastiveConfig, ContrastivePrior
from dalle2_core.types import PriorBatch


def make(**keywords):
    torch.manual_seed(0)
    network = PriorNetworkConfig(dim=24, embed_dim=16, depth=2, heads=2, dim_head=8)
    return ContrastivePrior(network, ContrastiveConfig(**keywords))


def pairs(rows=8):
    draw = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(2, rows, 16, generator=draw), dim=-1)


def test_the_loss_is_the_papers():
    """2312.04655: squared error, and cross-entropy over the texts of the batch, written out."""
    text, image = pairs()
    prior = make(contrastive_weight=0.5, contrastive_temperature=0.1).fit(text, image)
    step = prior.loss(PriorBatch(text, image), None)
    predicted = prior.sample(text, normalize=False)
    scale = image.std(0, correction=0)
    squared = (((predicted - image) / scale) ** 2).mean()
    logits = F.normalize(predicted, dim=-1) @ text.T / 0.1
    contrast = -torch.stack([logits[i].log_softmax(0)[i] for i in range(8)]).mean()
    torch.testing.assert_close(step.loss.detach(), squared + 0.5 * contrast, atol=1e-4, rtol=1e-4)
    assert step.metrics["contrast"] == pytest.approx(float(contrast), abs=1e-4)


def test_it_overfits_one_batch_and_draws_nothing():
    text, image = pairs()
    # These texts and images are no neighbours: the second loss would pull away from the images.
    prior = make(contrastive_weight=0.01).fit(text, image)
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        prior.loss(PriorBatch(text, image), None).loss.backward()
        optimizer.step()
    assert (prior.sample(text) @ image.T).argmax(1).tolist() == list(range(8))
    before = torch.get_rng_state()
    assert torch.equal(prior.sample(text), prior.sample(text))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_weight_that_trains_is_reached():
    text, image = pairs()
    prior = make().fit(text, image)
    prior.loss(PriorBatch(text, image), None).loss.backward()
    trained = [name for name, weight in prior.named_parameters() if weight.requires_grad and weight.grad is None]
    assert trained == []


def test_text_tokens_are_read():
    text, image = pairs()
    prior = make().fit(text, image).eval()
    tokens = torch.randn(8, 3, 24)
    assert not torch.allclose(prior.sample(text, text_encodings=tokens), prior.sample(text), atol=1e-3)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="contrastive_weight is -1"):
        ContrastiveConfig(contrastive_weight=-1)
    with pytest.raises(ConfigError, match="contrastive_temperature is 0"):
        ContrastiveConfig(contrastive_temperature=0)
    with pytest.raises(ConfigError, match="cannot be guided"):
        make().fit(*pairs()).sample(pairs()[0], cond_scale=2.0)
