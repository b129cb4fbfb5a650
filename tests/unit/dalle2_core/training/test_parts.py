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
from dalle2_core.training.metrics_log import MetricLog, read_metrics
from dalle2_core.training.optim import OptimConfig, learning_rate, make_optimizer
from dalle2_core.training.seeding import derived_seed, seeded_layers


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


@pytest.mark.parametrize(("updates", "decay"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (71, 8 / 9), (1000, 0.9)])
def test_the_decay_warms_up(updates, decay):
    assert decay_at(updates, 0.9) == pytest.approx(decay)


def test_the_average_is_for_judging_not_for_training():
    averaged = make_ema(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)), 0.9)
    assert not any(it.requires_grad for it in averaged.parameters())
    assert not any(module.training for module in averaged.modules())


def test_whole_numbers_among_the_weights_are_those_of_the_model():
    model = torch.nn.Linear(2, 2)
    model.count = torch.nn.Parameter(torch.tensor([5]), requires_grad=False)
    averaged = make_ema(model, 0.5)
    averaged.update_parameters(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.count += 4
        model.weight += 1
    averaged.update_parameters(model)
    assert int(averaged.module.count) == 9
    torch.testing.assert_close(averaged.module.weight, before + 9 / 11)  # the second update's decay is 2/11


def test_learning_rate_by_hand():
    config = OptimConfig(lr=1.0, warmup_steps=4, schedule="cosine", final_lr_fraction=0.1)
    rates = [learning_rate(step, 24, config) for step in range(1, 25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[13] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    cooldown = OptimConfig(lr=1.0, warmup_steps=4, schedule="cooldown", cooldown_fraction=0.5, final_lr_fraction=0.2)
    rates = [learning_rate(step, 20, cooldown) for step in (2, 4, 10, 15, 20)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2])
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


def test_the_rate_without_warm_up_and_behind_the_last_step():
    plain = OptimConfig(lr=2.0, schedule="cosine")
    assert [learning_rate(step, 2, plain) for step in (1, 2, 3)] == pytest.approx([1.0, 0.0, 0.0])
    late = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=4, final_lr_fraction=0.5)
    assert [learning_rate(step, 4, late) for step in (1, 4, 5)] == pytest.approx([0.5, 2.0, 1.0])
    assert learning_rate(1, 1, OptimConfig()) == 3e-4


def test_the_optimizer_is_made_as_it_is_told():
    model = torch.nn.Linear(2, 2)
    made = make_optimizer(model, OptimConfig(lr=0.5, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.25))
    assert isinstance(made, torch.optim.AdamW)
    expected = {"lr": 0.5, "betas": (0.8, 0.95), "eps": 1e-5, "fused": True}
    for group, decay in zip(made.param_groups, (0.25, 0.0), strict=True):
        assert {name: group[name] for name in expected} == expected
        assert group["weight_decay"] == decay
    default = make_optimizer(model, OptimConfig()).param_groups
    # As docs/training.md and the published priors have them.
    assert [(it["lr"], it["betas"], it["eps"], it["weight_decay"]) for it in default] == [
        (3e-4, (0.9, 0.99), 1e-8, 1e-2),
        (3e-4, (0.9, 0.99), 1e-8, 0.0),
    ]
    assert (OptimConfig().max_grad_norm, OptimConfig().warmup_steps, OptimConfig().final_lr_fraction) == (1.0, 0, 0.0)
    (everything,) = make_optimizer(model, OptimConfig(decay_matrices_only=False)).param_groups
    assert len(everything["params"]) == 2
    (gains,) = make_optimizer(torch.nn.LayerNorm(3), OptimConfig()).param_groups
    assert gains["weight_decay"] == 0.0


@pytest.mark.parametrize("right", [{"lr": 1e-9}, {"warmup_steps": 0}, {"max_grad_norm": 1e-9}, {"max_grad_norm": None}])
def test_what_is_just_possible_is_taken(right):
    (name, value), *_ = right.items()
    assert getattr(OptimConfig(**right), name) == value


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"schedule": "linear"}, {"warmup_steps": -1}, {"max_grad_norm": 0.0}, {"lr": -1.0}]
)
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
