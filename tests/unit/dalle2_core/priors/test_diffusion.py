"""The diffusion prior as its users see it."""

import json

import pytest
import torch
from torch.nn import functional as F

from dalle2_core import DiffusionPrior, DiffusionPriorNetwork, PriorBatch
from dalle2_core.diffusion.samplers import SAMPLERS
from dalle2_core.diffusion.weighting import WEIGHTINGS
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError


def make(dim=16, net=None, **keywords):
    torch.manual_seed(0)
    network = DiffusionPriorNetwork(dim=dim, depth=2, heads=2, dim_head=8, **(net or {}))
    return DiffusionPrior(network, **{"timesteps": 20, **keywords})


def pairs(rows=6, dim=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(2, rows, dim, generator=draw), dim=-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("predicts", ["x0", "noise", "v"])
@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
@pytest.mark.parametrize("scaling", ["fixed", "data"])
def test_loss_is_a_finite_function_of_the_generator_and_leaves_inputs_alone(predicts, weighting, scaling):
    prior = make(predicts=predicts, loss_weighting=weighting, embed_scaling=scaling)
    text, image = pairs()
    prior.fit_scaling(text, image)
    before = text.clone(), image.clone()
    batch = PriorBatch(text, image)
    first, again, other = (prior.loss(batch, seeded(seed)).loss for seed in (1, 1, 2))
    assert bool(torch.isfinite(first))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    prior.sample(text, generator=seeded())
    assert torch.equal(text, before[0])
    assert torch.equal(image, before[1])


def test_the_clip_moves_along_and_is_no_part_of_the_prior():
    clip = torch.nn.Linear(2, 2)
    prior = make(clip=clip)
    assert not [name for name in prior.state_dict() if "clip" in name]
    assert not any(weight is clip.weight for weight in prior.parameters())
    assert prior.to("meta") is prior
    assert clip.weight.device.type == "meta"


def test_published_call_gives_the_same_loss():
    prior = make()
    text, image = pairs()
    one = prior(text_embed=text, image_embed=image, generator=seeded())
    assert torch.equal(one, prior.loss(PriorBatch(text, image), seeded()).loss)


def test_an_untrained_x0_loss_is_that_of_unit_variance():
    """The error of a network that always says 0 is the scaled embeddings' mean square, which is 1."""
    prior = make()
    prior.net.causal_transformer.project_out.weight.data.zero_()
    text, image = pairs(rows=500)
    assert prior.loss(PriorBatch(text, image), seeded()).loss.item() == pytest.approx(1.0, abs=1e-5)


def test_data_scaling_standardises_and_survives_saving(tmp_path):
    prior = make(embed_scaling="data")
    image = torch.randn(1000, 16, generator=seeded()) * torch.linspace(0.1, 2, 16) + 3
    prior.fit_scaling(image, image)
    scaled = prior.image_scaling(image)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(prior.image_scaling.inverse(scaled), image, atol=1e-4, rtol=1e-4)
    prior.save(tmp_path)
    assert torch.equal(DiffusionPrior.load(tmp_path).image_scaling.shift, prior.image_scaling.shift)


def overfit(prior, text, image, steps):
    prior.fit_scaling(text, image)
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
    batch = PriorBatch(text.repeat(8, 1), image.repeat(8, 1))
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = prior.loss(batch, seeded(step)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_overfits_one_batch_and_samples_it():
    prior = make(cond_drop_prob=0.0, embed_scaling="data")
    text, image = pairs(rows=8)
    overfit(prior, text, image, steps=120)
    likeness = prior.sample(text, num_samples_per_batch=1, generator=seeded()) @ image.T
    assert likeness.argmax(1).tolist() == list(range(8))
    assert likeness.diagonal().mean() > 0.9


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_other_targets_are_learnt_too(predicts):
    losses = overfit(make(predicts=predicts, timesteps=100), *pairs(rows=8), steps=60)
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_sample_is_seeded_normalised_and_keeps_the_mode():
    prior = make(net={"ff_dropout": 0.5}).train()
    text, _ = pairs()
    one, again, other = (prior.sample(text, steps=5, generator=seeded(it)) for it in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(6))
    assert prior.training


def test_global_generator_is_used_only_when_none_is_given():
    prior = make()
    text, image = pairs()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    prior.loss(PriorBatch(text, image), seeded())
    prior.sample(text, steps=3, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_reranking_keeps_the_candidate_nearest_the_text():
    prior = make()
    text, _ = pairs(rows=4)
    best = prior.sample(text, steps=4, num_samples_per_batch=8, generator=seeded())
    # The same draws as 8 rows for each text, without a choice.
    every = prior.sample(text.repeat_interleave(8, 0), steps=4, num_samples_per_batch=1, generator=seeded()).view(
        4, 8, 16
    )
    likeness = (every * text[:, None]).sum(-1)
    for row in range(4):
        torch.testing.assert_close(best[row], every[row, likeness[row].argmax()], atol=1e-5, rtol=1e-5)


def test_guidance_moves_the_sample_and_needs_dropped_text():
    text, _ = pairs()
    prior = make(cond_drop_prob=0.1)
    plain, same, moved = (
        prior.sample(text, steps=4, cond_scale=scale, generator=seeded()) for scale in (1.0, 1.000001, 3.0)
    )
    torch.testing.assert_close(plain, same, atol=1e-3, rtol=0)
    assert not torch.allclose(plain, moved, atol=1e-3)
    with pytest.raises(ConfigError, match="cond_drop_prob above 0"):
        make(cond_drop_prob=0.0).sample(text, cond_scale=2.0)


def test_dropping_forgets_the_text_and_nothing_else():
    """With nearly every text dropped the loss does not change with the text, but does with the image."""
    prior = make(cond_drop_prob=1 - 1e-9)
    text, image = pairs()
    losses = [
        prior.loss(PriorBatch(it, that), seeded()).loss for it, that in ((text, image), (-text, image), (text, -image))
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_clamped_sampling_stays_on_the_sphere():
    prior = make(sampling_clamp_l2norm=True)
    text, _ = pairs()
    out = prior.sample(text, steps=4, normalize=False, generator=seeded())
    torch.testing.assert_close(out.norm(dim=1), torch.ones(6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("net", [{}, {"embed_dim": 16, "self_cond": True, "num_timesteps": 20}])
def test_saved_and_loaded_is_the_same_prior(tmp_path, net):
    prior = make(net=net, predicts="v", sample_timesteps=5, image_embed_scale=3.0)
    text, image = pairs()
    prior.save(tmp_path)
    loaded = DiffusionPrior.load(tmp_path)
    assert loaded.config == prior.config
    assert loaded.net.config == prior.net.config
    assert torch.equal(loaded.sample(text, generator=seeded()), prior.sample(text, generator=seeded()))
    batch = PriorBatch(text, image)
    assert torch.equal(loaded.loss(batch, seeded()).loss, prior.loss(batch, seeded()).loss)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        DiffusionPrior.load(tmp_path)
    make().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["dept"] = config["network"].pop("depth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'dept'; did you mean depth"):
        DiffusionPrior.load(tmp_path)
    config["network"]["depth"] = config["network"].pop("dept") + 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not belong together"):
        DiffusionPrior.load(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    config["network"]["depth"] -= 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        DiffusionPrior.load(tmp_path)


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r"DiffusionPrior has no keyword 'timestep'; did you mean timesteps"):
        make(timestep=3)
    with pytest.raises(ConfigError, match="no prediction target 'eps'; known: flow, noise, v, x0"):
        make(predicts="eps")
    with pytest.raises(ConfigError, match="image_embed_dim is 8, but the network is for 16"):
        make(image_embed_dim=8)
    with pytest.raises(ShapeError, match=r"this model takes \[b, 16\]"):
        make().sample(torch.randn(2, 8))
    with pytest.raises(ConfigError, match="choose 1 to 20"):
        make().sample(torch.randn(2, 16), steps=21)
    with pytest.raises(ShapeError, match="must both be"):
        PriorBatch(torch.randn(2, 8), torch.randn(2, 9))


def test_text_tokens_train_and_sample():
    prior = make()
    text, image = pairs()
    tokens = torch.randn(6, 3, 16, generator=seeded())
    mask = torch.arange(3) < torch.tensor([1, 2, 3, 3, 2, 1])[:, None]
    prior.loss(PriorBatch(text, image, tokens, mask), seeded()).loss.backward()
    out = prior.sample(text, text_encodings=tokens, text_mask=mask, steps=3, cond_scale=2.0, generator=seeded())
    assert not torch.allclose(out, prior.sample(text, steps=3, cond_scale=2.0, generator=seeded()), atol=1e-3)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("predicts", ["x0", "v", "flow"])
@pytest.mark.parametrize("options", [{"zero_terminal_snr": True}, {"beta_schedule": "flow"}], ids=str)
def test_schedules_that_end_in_noise_train_and_sample(options, predicts, sampler):
    prior = make(predicts=predicts, sampler=sampler, loss_weighting="min-snr", **options)
    text, image = pairs()
    batch = PriorBatch(text.repeat(20, 1), image.repeat(20, 1))
    prior.loss(batch, seeded()).loss.backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in prior.parameters() if weight.grad is not None)
    assert bool(torch.isfinite(prior.sample(text, steps=5, generator=seeded())).all())


def test_the_noise_cannot_be_predicted_where_it_is_all_there_is():
    for options in ({"zero_terminal_snr": True}, {"beta_schedule": "flow"}):
        with pytest.raises(ConfigError, match='predicts "noise" cannot give x0'):
            make(predicts="noise", **options)


def test_clamps_to_norm_1():
    text, image = pairs()
    # Before the loss: only the direction of the estimate counts.
    losses = []
    for size in (0.01, 3.0):
        prior = make(training_clamp_l2norm=True)
        prior.net.causal_transformer.project_out.weight.data *= size
        losses.append(float(prior.loss(PriorBatch(text, image), seeded()).loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ConfigError, match='training_clamp_l2norm needs predicts "x0"'):
        make(training_clamp_l2norm=True, predicts="v")
    raw = make(sampling_final_clamp_l2norm=True).sample(text, steps=3, normalize=False, generator=seeded())
    torch.testing.assert_close(raw.norm(dim=1), torch.ones(len(text)))
    # At each step: what comes out of the last one has norm 1, scaled by data or not.
    for scaling in ("fixed", "data"):
        prior = make(sampling_clamp_l2norm=True, embed_scaling=scaling).fit(text, image)
        raw = prior.sample(text, steps=3, normalize=False, generator=seeded())
        torch.testing.assert_close(raw.norm(dim=1), torch.ones(len(text)), atol=1e-4, rtol=0)


def test_sampling_can_start_from_norm_1():
    prior = make(init_image_embed_l2norm=True)
    starts = []
    prior.net.register_forward_pre_hook(lambda module, args: starts.append(args[0]))
    prior.sample(pairs()[0], steps=2, generator=seeded())
    torch.testing.assert_close(starts[0].norm(dim=1), torch.full((12,), 4.0))


def test_tokens_are_left_alone_where_they_are_not_wanted():
    text, image = pairs()
    tokens = torch.randn(6, 3, 16, generator=seeded())
    with_tokens = PriorBatch(text, image, tokens)
    prior = make(condition_on_text_encodings=False)
    assert torch.equal(prior.loss(with_tokens, seeded()).loss, prior.loss(PriorBatch(text, image), seeded()).loss)
    assert not torch.equal(make().loss(with_tokens, seeded()).loss, make().loss(PriorBatch(text, image), seeded()).loss)


def test_batches_are_cut_to_their_longest_text():
    prior = make()
    text, image = pairs()
    tokens = torch.randn(6, 77, 16, generator=seeded())
    mask = torch.arange(77) < torch.tensor([2, 5, 3, 1, 0, 4])[:, None]
    seen = []
    prior.net.causal_transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].x.shape))
    loss = prior.loss(PriorBatch(text, image, tokens, mask), seeded()).loss
    assert seen == [(6, 5 + 4, 16)]
    short = prior.loss(PriorBatch(text, image, tokens[:, :5], mask[:, :5]), seeded()).loss
    torch.testing.assert_close(loss, short)


def test_each_step_of_sampling_reads_three_tokens_and_the_text_once():
    prior = make()
    text, _ = pairs()
    tokens = torch.randn(6, 9, 16, generator=seeded())
    attention, seen = prior.net.causal_transformer.layers[0][0], []
    attention.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    prior.sample(text, text_encodings=tokens, steps=4, num_samples_per_batch=1, cond_scale=2.0, generator=seeded())
    assert seen == [(12, 9 + 1)] + [(12, 3)] * 4


def test_a_folder_of_the_first_version_is_read(tmp_path):
    """Its config knew fewer fields."""
    prior = make().eval()
    prior.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    later = {
        "network": ("attention", "bias_scale", "scaled_norms", "text_padding", "truncated_time"),
        "diffusion": (
            "zero_terminal_snr",
            "condition_on_text_encodings",
            "training_clamp_l2norm",
            "sampling_final_clamp_l2norm",
            "init_image_embed_l2norm",
        ),
    }
    for part, names in later.items():
        for name in names:
            del config[part][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    text, _ = pairs()
    loaded = DiffusionPrior.load(tmp_path).eval()
    assert torch.equal(loaded.sample(text, generator=seeded()), prior.sample(text, generator=seeded()))
