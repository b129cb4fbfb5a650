"""`UnclipPrior` against diffusers' own `PriorTransformer`, scheduler and prior pipeline's loop, on random weights."""

import pytest
import torch
from torch.nn import functional as F

from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.priors.diffusers_folder import is_diffusers_prior, read_diffusers_prior, write_diffusers_prior
from dalle2_core.priors.registry import load_prior
from dalle2_core.priors.unclip import UnclipConfig, UnclipPrior, unclip_timesteps
from dalle2_core.types import EmbeddedText, PriorBatch, TextCondition

diffusers = pytest.importorskip("diffusers")
WIDTH, LENGTH, ROWS = 16, 9, 3
# Karlo's and Kandinsky's, ECLIPSE's in diffusers' class (λ-ECLIPSE), and one with all that is optional.
SHAPES = {
    "karlo": {},
    "lambda-eclipse": {"num_attention_heads": 4, "attention_head_dim": 4, "num_layers": 1},
    "all norms": {"norm_in_type": "layer", "embedding_proj_norm_type": "layer", "time_embed_dim": 24},
    "no query": {"added_emb_type": None, "additional_embeddings": 3},
}


def pipeline_folder(folder, seed=0, clip_sample_range=2.0, **settings):
    """A prior and its scheduler as diffusers saves them, with random weights."""
    torch.manual_seed(seed)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "embedding_dim": WIDTH,
             "num_embeddings": LENGTH, "additional_embeddings": 4}  # fmt: skip
    model = diffusers.PriorTransformer(**sizes | settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        model.clip_std.copy_(model.clip_std.abs() + 0.5)
    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", num_train_timesteps=100, clip_sample_range=clip_sample_range,
        prediction_type="sample",
    )  # fmt: skip
    model.save_pretrained(folder / "prior")
    scheduler.save_pretrained(folder / "scheduler")
    return model, scheduler


def texts(seed=1, rows=ROWS):
    """Raw embeddings, states of all places as a text encoder gives them, and which are real."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([LENGTH, 4, 2])[:rows]
    return (
        4 * torch.randn(rows, WIDTH, generator=draw),
        torch.randn(rows, LENGTH, WIDTH, generator=draw),
        torch.arange(LENGTH) < lengths[:, None],
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_network_is_that_of_diffusers(tmp_path, shape):
    model, _ = pipeline_folder(tmp_path, **SHAPES[shape])
    prior = read_diffusers_prior(tmp_path).prior.eval()
    embed, states, mask = texts()
    x, time = torch.randn(ROWS, WIDTH), torch.tensor([0, 7, 99])
    with torch.no_grad():
        theirs = model(x, time, embed, states, mask).predicted_image_embedding
        theirs = theirs.view(ROWS, WIDTH) if shape != "no query" else theirs[:, -1]
        ours = prior.net(x, time, TextCondition(embed, states, mask))
        # The padding's states are nobody's business: ragged texts, stored without them, give the same.
        ragged = prior.net(x, time, TextCondition(embed, states * mask[:, :, None], mask).trimmed())
        short = prior.net(x[1:], time[1:], TextCondition(embed[1:], states[1:], mask[1:]).trimmed())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ragged, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(short, theirs[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale", "steps"), [(1.0, 5), (4.0, 5), (4.0, 25)])
def test_sampling_is_that_of_diffusers_pipelines(tmp_path, scale, steps):
    model, scheduler = pipeline_folder(tmp_path)
    prior = read_diffusers_prior(tmp_path).prior.eval()
    embed, states, mask = texts()
    null, null_states, null_mask = texts(seed=2, rows=1)
    null_mask[:] = torch.arange(LENGTH) < 2
    prior.set_null_text(EmbeddedText(null, null_states, null_mask))

    # The loop of diffusers' prior pipelines, over its own model and scheduler.
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, WIDTH, generator=draw)
    scheduler.set_timesteps(steps)
    assert torch.equal(scheduler.timesteps, unclip_timesteps(100, steps))
    with torch.no_grad():
        for place, t in enumerate(scheduler.timesteps):
            told = model(x, t, embed, states, mask).predicted_image_embedding
            if scale != 1.0:
                args = (null.expand(ROWS, -1), null_states.expand(ROWS, -1, -1), null_mask.expand(ROWS, -1))
                without = model(x, t, *args).predicted_image_embedding
                told = without + scale * (told - without)
            following = None if place + 1 == steps else scheduler.timesteps[place + 1]
            x = scheduler.step(told, t, x, generator=draw, prev_timestep=following).prev_sample
        theirs = model.post_process_latents(x)

    named = {"text_encodings": states, "text_mask": mask, "cond_scale": scale, "steps": steps}
    ours = prior.sample(embed, **named, normalize=False, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    unit = prior.sample(embed, **named, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(unit, F.normalize(theirs, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, shape):
    model, scheduler = pipeline_folder(tmp_path / "theirs", **SHAPES[shape])
    read_diffusers_prior(tmp_path / "theirs").prior.save(tmp_path / "ours")
    loaded = load_prior(tmp_path / "ours")
    write_diffusers_prior(loaded, tmp_path / "back")
    again = diffusers.PriorTransformer.from_pretrained(tmp_path / "back" / "prior")
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], it) for name, it in theirs.items())
    public = {name: it for name, it in model.config.items() if not name.startswith("_")}
    assert {name: again.config[name] for name in public} == public
    schedule = diffusers.UnCLIPScheduler.from_pretrained(tmp_path / "back" / "scheduler")
    assert {name: it for name, it in schedule.config.items() if not name.startswith("_")} == {
        name: it for name, it in scheduler.config.items() if not name.startswith("_")
    }


def test_half_precision_stays_half_precision(tmp_path):
    model, _ = pipeline_folder(tmp_path)
    model.half().save_pretrained(tmp_path / "prior", variant="fp16")
    (tmp_path / "prior" / "diffusion_pytorch_model.safetensors").unlink()
    prior = read_diffusers_prior(tmp_path).prior
    assert prior.net.proj_in.weight.dtype == torch.float16
    assert torch.isfinite(prior.sample(texts()[0], text_encodings=texts()[1], text_mask=texts()[2])).all()


def test_eclipse_predicts_in_one_pass_and_learns_by_contrast():
    """Its class is not in diffusers: the network without time must be the one with time whose time says nothing."""
    torch.manual_seed(0)
    config = UnclipConfig(num_layers=1, num_attention_heads=2, attention_head_dim=8, reads_time=False,
                          clip_sample_range=None, contrastive_weight=0.2, cond_drop_prob=0.0)  # fmt: skip
    prior = UnclipPrior(config.network(WIDTH), config)
    assert prior.compares_rows
    assert not any("time" in name for name in prior.state_dict())
    text, image = texts()[0], texts(seed=5)[0]
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        found = prior.loss(PriorBatch(text, image), torch.Generator().manual_seed(step))
        found.loss.backward()
        optimizer.step()
        losses.append(found.metrics["contrast"])
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(ConfigError, match="a prior of one pass cannot be guided"):
        prior.sample(text, cond_scale=2.0)


def test_eclipses_loss_is_the_papers_row_by_row():
    torch.manual_seed(0)
    config = UnclipConfig(num_layers=1, num_attention_heads=2, attention_head_dim=8, reads_time=False,
                          clip_sample_range=None, contrastive_weight=0.2, contrastive_temperature=0.3,
                          cond_drop_prob=0.0)  # fmt: skip
    prior = UnclipPrior(config.network(WIDTH), config).eval()
    text, image = texts()[0], texts(seed=5)[0]
    found = prior.loss(PriorBatch(text, image), torch.Generator().manual_seed(3)).loss
    noise = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))
    p = prior.net(noise, None, TextCondition(text)).detach()
    squared = sum(((p[i] - image[i]) ** 2).mean() for i in range(ROWS)) / ROWS
    contrast = 0.0
    for i in range(ROWS):
        likeness = torch.stack([(p[i] @ text[j]) / (p[i].norm() * text[j].norm()) for j in range(ROWS)])
        contrast -= torch.log(torch.exp(likeness[i] / 0.3) / torch.exp(likeness / 0.3).sum()) / ROWS
    torch.testing.assert_close(found.detach(), squared + 0.2 * contrast)


def test_eclipses_folder_goes_there_and_back(tmp_path):
    torch.manual_seed(0)
    config = UnclipConfig(num_layers=1, num_attention_heads=2, attention_head_dim=8, reads_time=False,
                          reads_tokens=True, clip_sample_range=None)  # fmt: skip
    prior = UnclipPrior(config.network(WIDTH), config).eval()
    write_diffusers_prior(prior, tmp_path)
    assert not (tmp_path / "scheduler").exists()
    again = read_diffusers_prior(tmp_path).prior.eval()
    assert not again.net.config.reads_time
    embed, states, mask = texts()
    named = {"text_encodings": states, "text_mask": mask, "normalize": False}
    one, other = (it.sample(embed, **named, generator=torch.Generator().manual_seed(1)) for it in (prior, again))
    assert torch.equal(one, other)


def test_the_empty_text_is_kept_dropped_and_asked_for(tmp_path):
    pipeline_folder(tmp_path / "theirs")
    prior = read_diffusers_prior(tmp_path / "theirs").prior
    embed, states, mask = texts()
    with pytest.raises(ConfigError, match="whose embedding this prior does not know; give it by set_null_text"):
        prior.sample(embed, text_encodings=states, text_mask=mask, cond_scale=4.0)
    with pytest.raises(ShapeError, match="reads the states of a text's tokens"):
        prior.sample(embed)
    null, null_states, _ = texts(seed=2, rows=1)
    prior.set_null_text(EmbeddedText(null, null_states, torch.arange(LENGTH)[None] < 2))
    assert prior.null_text_tokens.shape == (1, 2, WIDTH)
    prior.save(tmp_path / "ours")
    loaded = load_prior(tmp_path / "ours")
    assert torch.equal(loaded.null_text_embed, null)
    # All texts dropped: the loss is that of the empty text in every row.
    always = UnclipPrior(prior.net.config, UnclipConfig(timesteps=100, cond_drop_prob=0.999999))
    always.load_state_dict(prior.state_dict(), strict=False)
    always.set_null_text(EmbeddedText(null, null_states, torch.arange(LENGTH)[None] < 2))
    draws = (torch.Generator().manual_seed(4) for _ in range(2))
    image = texts(seed=5)[0]
    dropped = always.loss(PriorBatch(embed, image, states, mask), next(draws)).loss
    batch = PriorBatch(
        null.expand(ROWS, -1), image, null_states.expand(ROWS, -1, -1), torch.arange(LENGTH).expand(ROWS, -1) < 2
    )
    torch.testing.assert_close(dropped, always.loss(batch, next(draws)).loss)


def test_other_folders_are_refused(tmp_path):
    assert not is_diffusers_prior(tmp_path)
    pipeline_folder(tmp_path / "theirs")
    assert is_diffusers_prior(tmp_path / "theirs")
    assert is_diffusers_prior(tmp_path / "theirs" / "prior")
    assert read_diffusers_prior(tmp_path / "theirs" / "prior").assumed == ()
    (tmp_path / "theirs" / "scheduler" / "scheduler_config.json").unlink()
    assert "estimates are kept within 5" in read_diffusers_prior(tmp_path / "theirs").assumed[0]
    weights = tmp_path / "theirs" / "prior" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="its weights are a pickle"):
        read_diffusers_prior(tmp_path / "theirs")
    config = tmp_path / "theirs" / "prior" / "config.json"
    config.write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(CheckpointError, match="a UNet2DConditionModel, and no PriorTransformer"):
        read_diffusers_prior(tmp_path / "theirs")
    config.write_text('{"_class_name": "PriorTransformer", "surprise": 1}')
    with pytest.raises(ConfigError, match="settings that are not known: surprise"):
        read_diffusers_prior(tmp_path / "theirs")
