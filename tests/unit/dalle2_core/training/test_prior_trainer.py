"""DiffusionPriorTrainer: the names of DALLE2-pytorch, gradients in parts, the average, and exact save and load."""

import pickle

import pytest
import torch

from dalle2_core import DiffusionPrior, DiffusionPriorNetwork, DiffusionPriorTrainer
from dalle2_core.errors import AnotherRun, CheckpointError, ConfigError, NonFiniteLoss, ShapeError
from dalle2_core.priors.closed_form import Ridge
from dalle2_core.priors.registry import load_prior
from dalle2_core.types import EmbeddedImage, EmbeddedText

# DALLE2-pytorch's README, the script of the prior's trainer: the import line is changed, sizes and device brought down.
README = """
import torch
from dalle2_core import DiffusionPriorNetwork, DiffusionPrior, DiffusionPriorTrainer

text = torch.randint(0, 49408, (12, 7))
images = torch.randn(12, 3, 8, 8)

prior_network = DiffusionPriorNetwork(
    dim = 32,
    depth = 2,
    dim_head = 16,
    heads = 2
)

diffusion_prior = DiffusionPrior(
    net = prior_network,
    clip = clip,
    timesteps = 10,
    cond_drop_prob = 0.2
)

diffusion_prior_trainer = DiffusionPriorTrainer(
    diffusion_prior,
    lr = 3e-4,
    wd = 1e-2,
    ema_beta = 0.99,
    ema_update_after_step = 1000,
    ema_update_every = 10,
)

loss = diffusion_prior_trainer(text, images, max_batch_size = 4)
diffusion_prior_trainer.update()  # this will update the optimizer as well as the exponential moving averaged diffusion prior

# after much of the above three lines in a loop
# you can sample from the exponential moving average of the diffusion prior identically to how you do so for DiffusionPrior

image_embeds = diffusion_prior_trainer.sample(text, max_batch_size = 4) # (512, 512) - exponential moving averaged image embeddings
"""  # noqa: E501


class Clip:
    """Two towers of one matrix each: what a prior asks of a CLIP."""

    def __init__(self):
        draws = torch.Generator().manual_seed(0)
        self.words = torch.randn(49408, 32, generator=draws)
        self.pixels = torch.randn(3 * 8 * 8, 32, generator=draws)

    def embed_text(self, text):
        states = self.words[text]
        mean = torch.nn.functional.normalize(states.mean(dim=1), dim=1)
        return EmbeddedText(mean, states, torch.ones(text.shape, dtype=torch.bool))

    def embed_image(self, image):
        return EmbeddedImage(torch.nn.functional.normalize(image.flatten(1) @ self.pixels, dim=1))


def test_the_readmes_script_runs():
    there = {"clip": Clip()}
    exec(README, there)
    assert there["loss"] > 0
    assert there["image_embeds"].shape == (12, 32)
    assert there["diffusion_prior_trainer"].step == 1


def prior(dropout=0.0):
    torch.manual_seed(0)
    return DiffusionPrior(DiffusionPriorNetwork(dim=8, depth=1, heads=2, dim_head=4, ff_dropout=dropout), timesteps=10)


def rows(n=12, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.functional.normalize(torch.randn(n, 8, generator=draws), dim=1)
        for name in ("text_embed", "image_embed")
    }


def weights(trainer, averaged=False):
    model = trainer.ema_diffusion_prior if averaged else trainer.diffusion_prior
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def steps(trainer, count, start=0):
    losses = []
    for step in range(start, start + count):
        losses.append(trainer(**rows(seed=step)))
        trainer.update()
    return losses


def test_a_batch_in_parts_is_the_batch():
    whole, parts = DiffusionPriorTrainer(prior(), lr=1e-2), DiffusionPriorTrainer(prior(), lr=1e-2)
    for step in range(3):
        assert whole(**rows(seed=step)) == pytest.approx(parts(**rows(seed=step), max_batch_size=5), abs=1e-5)
        whole.update()
        parts.update()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=1e-3, atol=1e-5)


def test_saved_and_loaded_it_goes_on_with_the_same_bits(tmp_path):
    settings = {"lr": 1e-2, "warmup_steps": 3, "cosine_decay_max_steps": 9, "ema_update_after_step": 2}
    settings |= {"ema_update_every": 2, "ema_beta": 0.5}
    calm = DiffusionPriorTrainer(prior(0.3), **settings)
    losses = steps(calm, 8)
    first = DiffusionPriorTrainer(prior(0.3), **settings)
    assert steps(first, 5) == losses[:5]
    first.save(tmp_path / "there")
    second = DiffusionPriorTrainer(prior(0.3), **settings)
    steps(second, 2)  # something else, to be replaced
    second.load(tmp_path / "there")
    assert second.step == 5
    assert steps(second, 3, start=5) == losses[5:]
    for averaged in (False, True):
        expected = weights(calm, averaged)
        assert all(torch.equal(expected[name], it) for name, it in weights(second, averaged).items())
    assert second.optimizer.param_groups[0]["lr"] == calm.optimizer.param_groups[0]["lr"] < 1e-2 / 5, "no reset"
    with pytest.raises(ConfigError, match="is there already"):
        second.save(tmp_path / "there", overwrite=False)
    second.save(tmp_path / "there")
    assert [it.name for it in tmp_path.iterdir()] == ["there"]


def test_the_average_copies_first_and_then_takes_every_nth():
    trainer = DiffusionPriorTrainer(prior(), lr=1e-2, ema_beta=0.9, ema_update_after_step=2, ema_update_every=3)
    steps(trainer, 2)
    copied = weights(trainer)
    assert all(torch.equal(copied[name], it) for name, it in weights(trainer, averaged=True).items())
    steps(trainer, 3, start=2)  # updates 3, 4 and 5; only the third is taken
    name = "net.learned_query"
    third = DiffusionPriorTrainer(prior(), lr=1e-2)
    steps(third, 3)
    # Its first real update: decay (1 + 1) / (10 + 1).
    expected = copied[name] * (2 / 11) + weights(third)[name] * (9 / 11)
    torch.testing.assert_close(weights(trainer, averaged=True)[name], expected)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"DiffusionPriorTrainer has no keyword 'ema_betta'; did you mean ema_beta"):
        DiffusionPriorTrainer(prior(), ema_betta=0.9)
    with pytest.raises(ConfigError, match="ema_beta is 1"):
        DiffusionPriorTrainer(prior(), ema_beta=1.0)
    trainer = DiffusionPriorTrainer(prior(), lr=1e-2)
    with pytest.raises(ShapeError, match=r"inputs of \[11, 12\] rows"):
        trainer(text_embed=rows(12)["text_embed"], image_embed=rows(11)["image_embed"])
    with pytest.raises(ConfigError, match="max_batch_size is 0"):
        trainer(**rows(), max_batch_size=0)
    before = weights(trainer)
    bad = rows()
    bad["image_embed"][3] = float("nan")
    with pytest.raises(NonFiniteLoss, match="update 1: the loss is nan"):
        trainer(**bad)
    trainer(**rows())
    trainer.update()
    assert all(bool(torch.isfinite(it).all()) for it in weights(trainer).values())
    assert not torch.equal(before["net.learned_query"], weights(trainer)["net.learned_query"])


def test_foreign_and_poisoned_checkpoints_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    trainer = DiffusionPriorTrainer(prior(), lr=1e-2)
    steps(trainer, 1)
    trainer.save(tmp_path / "there")
    torch.manual_seed(0)
    wider = DiffusionPrior(DiffusionPriorNetwork(dim=12, depth=1, heads=2, dim_head=4), timesteps=10)
    with pytest.raises(AnotherRun, match=r"model\.network\.dim is 8 there and 12 here"):
        DiffusionPriorTrainer(wider).load(tmp_path / "there")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        trainer.load(tmp_path / "trap.pth")
    (tmp_path / "there" / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing or corrupt"):
        trainer.load(tmp_path / "there")
    assert not (tmp_path / "sprung").exists()


def test_only_a_trainers_checkpoint_is_replaced(tmp_path):
    trainer = DiffusionPriorTrainer(prior(), lr=1e-2)
    for name, files in {"pictures": ["cat.jpg"], "model": ["config.json", "model.safetensors"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("kept")
        with pytest.raises(CheckpointError, match=f"{name}: not only a checkpoint .* it holds {files[0]}"):
            trainer.save(tmp_path / name)
        assert {it.name: it.read_text() for it in (tmp_path / name).iterdir()} == dict.fromkeys(files, "kept")
    (tmp_path / "notes").write_text("kept")
    with pytest.raises(CheckpointError, match="it holds notes"):
        trainer.save(tmp_path / "notes")
    (tmp_path / "empty").mkdir()
    trainer.save(tmp_path / "empty")
    trainer.save(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"it holds notes\.txt"):
        trainer.save(tmp_path / "empty")
    trainer.load(tmp_path / "empty")


def test_a_checkpoint_of_other_settings_is_refused_unless_it_is_not_to_be_strict(tmp_path):
    def made(**settings):
        torch.manual_seed(0)
        network = DiffusionPriorNetwork(dim=8, depth=1, heads=2, dim_head=4)
        return DiffusionPriorTrainer(DiffusionPrior(network, timesteps=10, **settings), lr=1e-2)

    trainer = made(predict_x_start=True)
    steps(trainer, 1)
    trainer.save(tmp_path / "there", epoch=3, of={"data": "emb"})
    other = made(predict_v=True)
    with pytest.raises(AnotherRun, match=r"model\.diffusion\.predicts is 'x0' there and 'v' here"):
        other.load(tmp_path / "there")
    assert other.step == 0
    other.load(tmp_path / "there", strict=False)
    assert other.step == 1
    # Settings of sampling may differ.
    assert made(sample_timesteps=3, sampling_clamp_l2norm=True).load(tmp_path / "there") == {
        "epoch": 3, "of": {"data": "emb"},
    }  # fmt: skip


def test_the_learning_rate_is_ones_own_or_the_saved_one(tmp_path):
    DiffusionPriorTrainer(prior(), lr=1e-2).save(tmp_path / "there")
    for overwrite, expected in ((True, 1e-3), (False, 1e-2)):
        trainer = DiffusionPriorTrainer(prior(), lr=1e-3)
        trainer.load(tmp_path / "there", overwrite_lr=overwrite)
        steps(trainer, 1)
        assert trainer.optimizer.param_groups[0]["lr"] == expected


def test_numpy_rows_train_as_tensors_do():
    ours, theirs = DiffusionPriorTrainer(prior(), lr=1e-2), DiffusionPriorTrainer(prior(), lr=1e-2)
    assert ours(**rows()) == theirs(**{name: it.numpy() for name, it in rows().items()})
    assert ours.sample(rows()["text_embed"].numpy(), max_batch_size=5).shape == (12, 8)


def test_what_lies_in_place_of_a_checkpoint_is_named(tmp_path):
    trainer = DiffusionPriorTrainer(prior(), lr=1e-2)
    torch.save({}, tmp_path / "latest.pth")
    with pytest.raises(CheckpointError, match=r"latest\.pth: a file, and a trainer's checkpoint is a folder"):
        trainer.load(tmp_path / "latest.pth")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        trainer.load(tmp_path / "nowhere")
    trainer.save(tmp_path / "there")
    with pytest.raises(CheckpointError, match="there: a trainer's checkpoint, which its `load` reads"):
        load_prior(tmp_path / "there")
    prior().save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="model: holds a diffusion-prior; a ridge-prior saved there would"):
        Ridge().fit(**rows()).save(tmp_path / "model")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(CheckpointError, match="foreign: holds another program's model"):
        prior().save(tmp_path / "foreign")
    assert isinstance(load_prior(tmp_path / "model"), DiffusionPrior)
