"""DecoderTrainer: DALLE2-pytorch's README runs, gradients in parts, an average for each stage, exact save and load."""

import pytest
import torch

from dalle2_core import Decoder, DecoderTrainer
from dalle2_core.errors import AnotherRun, CheckpointError, ConfigError, NonFiniteLoss, ShapeError
from tests.tiny_unet import SMALL, unet

# DALLE2-pytorch's README, the script of the decoder's trainer: another import line, smaller sizes, no GPU.
README = """
import torch
from dalle2_core import Unet, Decoder, CLIP, DecoderTrainer

clip = CLIP(
    dim_text = 32,
    dim_image = 32,
    dim_latent = 32,
    num_text_tokens = 49408,
    text_enc_depth = 1,
    text_seq_len = 16,
    text_heads = 2,
    visual_enc_depth = 1,
    visual_image_size = 16,
    visual_patch_size = 8,
    visual_heads = 2
)

# mock data

text = torch.randint(0, 49408, (8, 16))
images = torch.randn(8, 3, 16, 16)

# decoder (with unet)

unet1 = Unet(
    dim = 8,
    image_embed_dim = 32,
    text_embed_dim = 32,
    cond_dim = 8,
    channels = 3,
    dim_mults=(1, 2),
    cond_on_text_encodings = True,
)

unet2 = Unet(
    dim = 8,
    image_embed_dim = 32,
    cond_dim = 8,
    channels = 3,
    dim_mults = (1, 2),
)

decoder = Decoder(
    unet = (unet1, unet2),
    image_sizes = (8, 16),
    clip = clip,
    timesteps = 10
)

decoder_trainer = DecoderTrainer(
    decoder,
    lr = 3e-4,
    wd = 1e-2,
    ema_beta = 0.99,
    ema_update_after_step = 1000,
    ema_update_every = 10,
)

for unet_number in (1, 2):
    loss = decoder_trainer(
        images,
        text = text,
        unet_number = unet_number, # which unet to train on
        max_batch_size = 4         # gradient accumulation - this sets the maximum batch size in which to do forward and backwards pass - for this example 32 / 4 == 8 times
    )

    decoder_trainer.update(unet_number) # update the specific unet as well as its exponential moving average

# after much training
# you can sample from the exponentially moving averaged unets as so

mock_image_embed = torch.randn(8, 32)
images = decoder_trainer.sample(image_embed = mock_image_embed, text = text) # (4, 3, 256, 256)
"""  # noqa: E501


def test_the_readmes_script_runs():
    there = {}
    exec(README, there)
    assert there["loss"] > 0
    assert there["images"].shape == (8, 3, 16, 16)
    assert [there["decoder_trainer"].num_steps_taken(number) for number in (1, 2)] == [1, 1]


def decoder(seed=0):
    """Two stages, 8 and 16 px."""
    second = {**SMALL, "image_embed_dim": None}
    return Decoder((unet(seed), unet(seed + 1, **second)), image_sizes=(8, 16), timesteps=20, learned_variance=False)


def rows(n=6, seed=0):
    draws = torch.Generator().manual_seed(seed)
    embeds = torch.nn.functional.normalize(torch.randn(n, 6, generator=draws), dim=1)
    return {"image": torch.rand(n, 3, 16, 16, generator=draws), "image_embed": embeds}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def steps(trainer, count, start=0, unet_number=1, **settings):
    losses = []
    for step in range(start, start + count):
        losses.append(trainer(**rows(seed=step), unet_number=unet_number, **settings))
        trainer.update(unet_number)
    return losses


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_batch_in_parts_is_the_batch_and_stages_do_not_touch_each_other():
    whole, parts = DecoderTrainer(decoder(), lr=1e-3), DecoderTrainer(decoder(), lr=1e-3)
    before = weights(whole.decoder.stage(1))
    assert steps(whole, 2, unet_number=2) == pytest.approx(steps(parts, 2, unet_number=2, max_batch_size=4), abs=1e-5)
    assert_same(before, weights(whole.decoder.stage(1)))
    for name, tensor in weights(whole.decoder).items():
        torch.testing.assert_close(tensor, weights(parts.decoder)[name], rtol=1e-3, atol=1e-5)


def test_saved_and_loaded_it_goes_on_with_the_same_bits(tmp_path):
    settings = {"lr": (1e-3, 2e-3), "warmup_steps": 2, "cosine_decay_max_steps": [9, 8], "ema_update_after_step": 1}
    settings |= {"ema_update_every": 2, "ema_beta": 0.5}
    calm = DecoderTrainer(decoder(), **settings)
    first_losses, second_losses = steps(calm, 5), steps(calm, 3, unet_number=2)
    first = DecoderTrainer(decoder(), **settings)
    assert steps(first, 3) == first_losses[:3]
    assert steps(first, 1, unet_number=2) == second_losses[:1]
    first.save(tmp_path / "there")
    second = DecoderTrainer(decoder(seed=5), **settings)
    steps(second, 1)  # something else, to be replaced
    second.load(tmp_path / "there")
    assert [second.num_steps_taken(number) for number in (1, 2)] == [3, 1]
    assert steps(second, 2, start=3) == first_losses[3:]
    assert steps(second, 2, start=1, unet_number=2) == second_losses[1:]
    assert_same(weights(calm.decoder), weights(second.decoder))
    assert_same(weights(calm.ema_decoder), weights(second.ema_decoder))
    assert second.optimizer(1).param_groups[0]["lr"] == calm.optimizer(1).param_groups[0]["lr"] < 1e-3
    with pytest.raises(ConfigError, match="is there already"):
        second.save(tmp_path / "there", overwrite=False)
    second.save(tmp_path / "there")
    assert [it.name for it in tmp_path.iterdir()] == ["there"]

    fresh = DecoderTrainer(decoder(), **settings)
    fresh.load(tmp_path / "there", only_model=True)
    assert_same(weights(second.decoder), weights(fresh.decoder))
    assert fresh.num_steps_taken(1) == 0
    (tmp_path / "there" / "stage-2" / "ema.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: missing or corrupt"):
        fresh.load(tmp_path / "there")
    assert_same(weights(second.decoder), weights(fresh.decoder))
    single = DecoderTrainer(Decoder(unet(), image_size=8, timesteps=20))
    with pytest.raises(CheckpointError, match="of 2 stages; this decoder has 1"):
        single.load(tmp_path / "there")


def test_samples_are_those_of_the_averaged_stages():
    trainer = DecoderTrainer(decoder(), lr=1e-2, ema_update_after_step=0, ema_update_every=100)
    steps(trainer, 1, unet_number=2)
    made = [
        trainer.sample(image_embed=rows()["image_embed"], generator=torch.Generator().manual_seed(1), steps=2, **which)
        for which in ({}, {"use_non_ema": True})
    ]
    expected = decoder().sample(image_embed=rows()["image_embed"], generator=torch.Generator().manual_seed(1), steps=2)
    assert torch.equal(made[0], expected), "not a step was averaged in"
    assert not torch.equal(made[1], expected)


def test_bfloat16_trains_alike():
    exact, rounded = DecoderTrainer(decoder(), lr=1e-3), DecoderTrainer(decoder(), lr=1e-3, precision="bfloat16")
    found = steps(exact, 2), steps(rounded, 2)
    assert found[1] == pytest.approx(found[0], rel=0.05)
    assert found[0] != found[1]
    assert all(tensor.dtype == torch.float32 for tensor in rounded.decoder.parameters())


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r"DecoderTrainer has no keyword 'ema_betta'; did you mean ema_beta"):
        DecoderTrainer(decoder(), ema_betta=0.9)
    with pytest.raises(ConfigError, match="lr has 3 values for 2 stages"):
        DecoderTrainer(decoder(), lr=(1e-3, 1e-3, 1e-3))
    trainer = DecoderTrainer(decoder())
    with pytest.raises(ConfigError, match="say which stage is trained: unet_number, 1 to 2"):
        trainer(**rows())
    with pytest.raises(ConfigError, match="there is no stage 3"):
        trainer.update(3)
    with pytest.raises(ShapeError, match=r"image_embed is \(6, 5\); .* are they from the encoder it was trained with"):
        trainer(rows()["image"], image_embed=rows()["image_embed"][:, :5], unet_number=1)
    bad = rows()
    bad["image"][3, 0, 0, 0] = float("nan")
    with pytest.raises(ShapeError, match="images hold NaN"):
        trainer(**bad, unet_number=1)
    broken = decoder()
    broken.stage(1).unet.to_out.weight.data[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match="update 1: the loss is"):
        DecoderTrainer(broken)(**rows(), unet_number=1)


def test_only_a_trainers_checkpoint_is_replaced(tmp_path):
    made = decoder()
    made.save(tmp_path / "decoder")
    (tmp_path / "decoder" / "run.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    trainer = DecoderTrainer(made)
    with pytest.raises(
        CheckpointError, match=r"decoder: not only a checkpoint of a DecoderTrainer: it holds config\.json"
    ):
        trainer.save(tmp_path / "decoder")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(CheckpointError, match="a run without a model|no such file|a checkpoint of a DecoderTrainer"):
        trainer.load(tmp_path / "decoder")


def test_stage_0_is_no_stage_and_a_checkpoint_of_other_settings_no_checkpoint(tmp_path):
    trainer = DecoderTrainer(Decoder(unet(), image_size=8, timesteps=20, learned_variance=False))
    for call in (trainer.update, trainer.num_steps_taken, lambda number: trainer(**rows(), unet_number=number)):
        with pytest.raises(ConfigError, match="there is no stage 0"):
            call(0)
    trainer.save(tmp_path / "there", run="a")
    other = DecoderTrainer(Decoder(unet(), image_size=8, timesteps=20, learned_variance=False, predict_v=True))
    with pytest.raises(AnotherRun, match=r"model\.stage\.predicts is 'noise' there and 'v' here"):
        other.load(tmp_path / "there")
    assert other.load(tmp_path / "there", strict=False) == {"run": "a"}
    assert [type(it).__name__ for it in trainer.unets] == ["Unet"]
