"""EMA, optimizer, log, curves and files of the training, each against what it should be by hand."""

import json
import math
import os

import pytest
import torch

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_tensors, replaced, write_tensors
from dalle2_core.training.curves import plot_curves
from dalle2_core.training.ema import decay_at, make_ema
from dalle2_core.training.log import MetricLog, read_metrics
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.randomness import derived_seed, seeded_layers


def test_ema_is_the_closed_form_sum():
    model = torch.nn.Linear(3, 2)
    model.register_buffer("count", torch.zeros((), dtype=torch.long))
    averaged = make_ema(model, decay=0.6)
    seen = []
    for step in range(12):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
            model.count.fill_(step)
        averaged.update_parameters(model)
        seen.append(model.weight.detach().clone())
    # The first update copies; update n (from 1) keeps d_n of the average and takes 1 - d_n of the weights.
    decays = [0.0] + [min(0.6, (1 + n) / (10 + n)) for n in range(1, 12)]
    shares = [(1 - decays[i]) * math.prod(decays[i + 1 :]) for i in range(12)]
    assert sum(shares) == pytest.approx(1.0)
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    torch.testing.assert_close(averaged.module.weight.detach(), expected)
    assert int(averaged.module.count) == 11
    assert decay_at(10**6, 0.999) == 0.999


def test_learning_rate_by_hand():
    config = OptimConfig(lr=1.0, warmup_steps=4, schedule="cosine", final_lr_fraction=0.1)
    rates = [learning_rate(step, 24, config) for step in range(1, 25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[13] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    constant = OptimConfig(lr=2.0, warmup_steps=2)
    assert [learning_rate(step, 9, constant) for step in (1, 2, 3, 9)] == [1.0, 2.0, 2.0, 2.0]


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    model.null = torch.nn.Parameter(torch.zeros(1, 1, 4))
    model.frozen = torch.nn.Parameter(torch.zeros(3, 3), requires_grad=False)
    decayed, undecayed = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [it is model[1].weight for it in decayed["params"]] == [True]
    assert decayed["weight_decay"] == 0.3
    assert undecayed["weight_decay"] == 0.0
    assert len(undecayed["params"]) == 5
    with pytest.raises(ConfigError, match="nothing can be trained"):
        make_optimizer(torch.nn.Identity(), OptimConfig())


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"schedule": "linear"}, {"warmup_steps": -1}, {"max_grad_norm": 0.0}])
def test_impossible_optimizers_are_refused(wrong):
    with pytest.raises(ConfigError):
        OptimConfig(**wrong)


def test_the_log_is_cut_where_the_checkpoint_is(tmp_path):
    log = MetricLog(tmp_path / "m.jsonl")
    log.cut_after({"train": 0, "valid": 0})
    for step in range(1, 6):
        log.write("train", step, step * 2, {"loss": 1 / step, "bad": math.nan})
        log.write("valid", step, step * 2, {"loss": 2.0})
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')
    log.cut_after({"train": 3, "valid": 2})
    records = read_metrics(log.path)
    assert [it["step"] for it in records if it["kind"] == "train"] == [1, 2, 3]
    assert [it["step"] for it in records if it["kind"] == "valid"] == [1, 2]
    assert records[0] == {"kind": "train", "step": 1, "samples": 2, "loss": 1.0, "bad": None}
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_curves_are_a_png(tmp_path):
    log = MetricLog(tmp_path / "m.jsonl")
    plot_curves(log.path, tmp_path / "empty.png")
    for step in (1, 2, 3):
        log.write("train", step, step, {"loss": 1 / step, "learning_rate": 0.1})
    log.write("valid", 3, 3, {"loss": 0.5, "cosine": 0.3})
    plot_curves(log.path, tmp_path / "curves.png")
    for name in ("empty.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with replaced(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert [it.name for it in tmp_path.iterdir()] == ["a.txt"]


def test_tied_and_strided_tensors_are_stored(tmp_path):
    shared = torch.randn(4, 3)
    tensors = {"a": shared, "b": shared, "t": shared.T, "row": shared[1]}
    write_tensors(tmp_path / "t.safetensors", tensors)
    back = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "t.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "t.safetensors")


def test_draws_depend_on_seed_step_and_purpose_and_leave_no_trace():
    seeds = {derived_seed(*it) for it in [(0, 1, "a"), (1, 0, "a"), (0, 1, "b"), (0, 2, "a"), (1, 1, "a")]}
    assert len(seeds) == 5
    before = torch.get_rng_state()
    cpu = torch.device("cpu")
    with seeded_layers(3, 4, cpu):
        one = torch.rand(3)
    with seeded_layers(3, 4, cpu):
        assert torch.equal(one, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027])
def test_weights_are_as_readable_as_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):  # anew, and over one that is there
            write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
            assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)
