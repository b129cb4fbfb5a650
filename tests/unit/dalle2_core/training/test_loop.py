"""The training loop: what it writes, how it stops, and that a killed run ends with the bits of an undisturbed one."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle2_core.errors import CheckpointError, ConfigError, NonFiniteLoss
from dalle2_core.files import read_tensors
from dalle2_core.rng import normal
from dalle2_core.training import OptimConfig, Run, TrainConfig, load_trained, train
from dalle2_core.training.checkpoint import Checkpoints, read_checkpoint
from dalle2_core.training.metrics_log import read_metrics
from dalle2_core.types import StepLoss
from tests.rows import Rows

CONFIG = TrainConfig(
    steps=20, batch_size=8, log_every=4, evaluate_every=6, save_every=5, ema_decay=0.9, best_metric="size"
)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=3)


class Model(torch.nn.Module):
    """Dropout and noise: both must come back on a resume."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 4))

    def loss(self, batch, draws):
        noise = normal(batch.x.shape, draws, batch.x.device)
        loss = (self.layers(batch.x + noise) - batch.x).square().mean()
        return StepLoss(loss, {"noise": float(noise.mean())})


def stream(step, bad_at=None):
    while True:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        step += 1
        yield Rows(x * float("nan") if step == bad_at else x)


def size(model):
    return {"size": float(sum(it.square().sum() for it in model.parameters()))}


def go(folder, config=CONFIG, optim=OPTIM, data=stream, describes=None, **keywords):
    run = Run(Path(folder), {} if describes is None else describes)
    return train(Model(), data, run, config, optim, **{"evaluate": size, **keywords})


def bits(state):
    return {
        f"{part}/{name}": tensor.clone()
        for part, tensors in state.tensors().items()
        for name, tensor in tensors.items()
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def metrics(folder):
    return [{k: v for k, v in it.items() if k != "seconds"} for it in read_metrics(Path(folder) / "metrics.jsonl")]


def steps(folder):
    return Checkpoints(Path(folder) / "checkpoints", {}).steps()


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than training here; the undisturbed run, made before this, draws."""
    monkeypatch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    reports = []
    state = go(folder, on_step=reports.append)
    return folder, bits(state), state.numbers(), reports


def test_it_says_when_a_checkpoint_is_there_and_older_ones_are_gone(tmp_path):
    seen = []
    run = Run(tmp_path, on_saved=lambda: seen.append(steps(tmp_path)))
    train(Model(), stream, run, CONFIG, OPTIM, evaluate=size)
    newest = [there[-1] for there in seen]
    assert newest == sorted(newest)
    assert {5, 10, 15, 20} <= set(newest)
    assert seen[-1] == steps(tmp_path)
    assert max(map(len, seen)) <= 3, "those to keep, and the best"


def test_what_a_run_leaves(undisturbed):
    folder, _, numbers, reports = undisturbed
    assert sorted(it.name for it in folder.iterdir()) == ["checkpoints", "curves.png", "metrics.jsonl"]
    records = metrics(folder)
    assert [it["step"] for it in records if it["kind"] == "train"] == [4, 8, 12, 16, 20]
    assert [it["step"] for it in records if it["kind"] == "valid"] == [6, 12, 18, 20]
    assert [it["step"] for it in records if it["kind"] == "online"] == [6, 12, 18, 20]
    assert {"loss", "noise", "grad_norm", "learning_rate", "samples"} <= records[0].keys()
    assert [it.step for it in reports] == list(range(1, 21))
    assert reports[-1].samples == numbers["samples"] == 160
    losses = [it.loss for it in reports]
    assert records[0]["loss"] == pytest.approx(sum(losses[:4]) / 4)
    by_kind = {it["kind"]: it["size"] for it in records if it["step"] == 20 and it["kind"] != "train"}
    assert by_kind["valid"] != by_kind["online"], "the average and the trained weights are both judged"
    # The two newest, and the one with the lowest size.
    sizes = {it["step"]: it["size"] for it in records if it["kind"] == "valid"}
    best = min(sizes, key=sizes.get)
    assert numbers["best"] == {"step": best, "value": sizes[best]}
    assert set(steps(folder)) == {18, 20, best} or set(steps(folder)) == {15, 20, best}


def test_dropout_is_not_the_same_at_every_step_and_draws_leave_no_trace(tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    seen = []

    class Watcher(Model):
        def loss(self, batch, draws):
            seen.append((torch.rand(3).tolist(), draws))
            return super().loss(batch, draws)

    model = Watcher()
    torch.manual_seed(123)
    train(model, stream, Run(tmp_path), replace(CONFIG, steps=4), OPTIM)
    assert torch.equal(torch.get_rng_state(), before)
    dropouts, draws = zip(*seen, strict=True)
    assert len({str(it) for it in dropouts}) == 4
    assert len({str(normal((8,), it, torch.device("cpu")).tolist()) for it in draws}) == 4


@pytest.mark.parametrize("at", [1, 5, 6, 12, 19])
def test_interrupted_and_resumed_is_undisturbed(tmp_path, undisturbed, at):
    def interrupt(report):
        if report.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, on_step=interrupt)
    assert steps(tmp_path)[-1] == at
    state = go(tmp_path)
    assert_same(bits(state), undisturbed[1])
    assert metrics(tmp_path) == metrics(undisturbed[0])
    assert state.numbers()["best"] == undisturbed[2]["best"]


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_within_a_step_waits_for_its_end(tmp_path, undisturbed, which):
    """SIGTERM too, where it is an interruption: the command line makes it one."""

    class Impatient(Model):
        def loss(self, batch, draws):
            result = super().loss(batch, draws)
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 7:
                signal.raise_signal(which)
            return result

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Impatient(), stream, Run(tmp_path), CONFIG, OPTIM, evaluate=size)
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps(tmp_path)[-1] == 7
    assert_same(bits(go(tmp_path)), undisturbed[1])


def test_interrupted_evaluation_is_made_up_for(tmp_path, undisturbed):
    def impatient(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, evaluate=impatient)
    assert steps(tmp_path)[-1] == 6
    go(tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed[0])


KILLED = """
import os, signal, sys
sys.path[:0] = {folders!r}
import torch
import test_loop as t
import dalle2_core.training.sharded_tensors as stored

torch.set_num_threads(1)
folder, at, inside_save = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "save"

def die(report):
    if report.step == at and not inside_save:
        os.kill(os.getpid(), signal.SIGKILL)

whole = stored.write_tensors
def torn(path, tensors):
    whole(path, tensors)
    if inside_save and path.parent.name == f".step-{{at:09d}}.tmp" and path.stem == "optimizer":
        os.kill(os.getpid(), signal.SIGKILL)
stored.write_tensors = torn
t.go(folder, on_step=die)
"""


@pytest.mark.slow
def test_killed_with_sigkill_and_resumed_is_bitwise_undisturbed(tmp_path, undisturbed):
    """Between two saves, then in the middle of one; the third sitting ends."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(folders=[str(Path(__file__).parents[up]) for up in (0, 4)]))
    run = tmp_path / "run"
    for at, where in (("9", "step"), ("15", "save")):
        killed = subprocess.run(
            [sys.executable, script, run, at, where], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        if where == "save":
            assert (run / "checkpoints" / ".step-000000015.tmp").exists()
            assert 15 not in steps(run)
    state = go(run)
    assert_same(bits(state), undisturbed[1])
    assert metrics(run) == metrics(undisturbed[0])
    assert not list((run / "checkpoints").glob(".*"))


def test_a_finished_run_does_nothing(tmp_path, undisturbed):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    reports = []
    state = go(tmp_path / "run", on_step=reports.append)
    assert reports == []
    assert_same(bits(state), undisturbed[1])
    assert metrics(tmp_path / "run") == metrics(undisturbed[0])


def test_a_constant_rate_lets_a_run_be_made_longer(tmp_path, undisturbed):
    go(tmp_path, config=replace(CONFIG, steps=15))
    assert_same(bits(go(tmp_path)), undisturbed[1])


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "state", "state-flip"])
def test_a_corrupt_checkpoint_is_passed_over_and_said(tmp_path, undisturbed, damage, caplog):
    run = tmp_path / "run"
    shutil.copytree(undisturbed[0], run)
    before, newest = [run / "checkpoints" / f"step-{it:09d}" for it in steps(run)[-2:]]
    victim = newest / ("state.json" if damage.startswith("state") else "model.safetensors")
    content = bytearray(victim.read_bytes())
    if damage == "missing":
        victim.unlink()
    elif damage == "flip":
        content[-3] ^= 1
        victim.write_bytes(content)
    elif damage == "state-flip":
        victim.write_bytes(bytes(content).replace(b'"samples": 160', b'"samples": 161'))
    else:
        victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        read_checkpoint(newest)
    with caplog.at_level(logging.WARNING):
        state = go(run)
    assert "the one before it is used" in caplog.text
    assert newest.name in caplog.text
    assert_same(bits(state), undisturbed[1])
    assert metrics(run) == metrics(undisturbed[0])
    read_checkpoint(newest)
    assert before.exists()


def test_all_corrupt_is_an_error_and_not_a_fresh_start(tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed[0], run)
    for step in steps(run):
        (run / "checkpoints" / f"step-{step:09d}" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="every checkpoint is corrupt"):
        go(run)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optim": replace(OPTIM, lr=0.5)}, "optim.lr is 0.01 there and 0.5 here"),
        ({"config": replace(CONFIG, seed=3)}, "train.seed is 0 there and 3 here"),
        ({"describes": {"data": {"sha": "b"}}}, r"data.sha is '\(absent\)' there and 'b' here"),
    ],
)
def test_another_runs_folder_is_refused_with_the_difference(undisturbed, change, text):
    with pytest.raises(CheckpointError, match=text):
        go(undisturbed[0], **change)


def test_nan_stops_the_run_names_the_step_and_spares_the_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 13, samples 97 to 104: the loss is nan") as problem:
        go(tmp_path, data=lambda step: stream(step, bad_at=13))
    assert problem.value.step == 13
    saved = read_checkpoint(tmp_path / "checkpoints" / f"step-{steps(tmp_path)[-1]:09d}")[1]
    assert all(bool(torch.isfinite(it).all()) for part in saved.values() for it in part.values())
    # With the bad rows mended the run goes on.
    assert go(tmp_path).step == 20


def test_an_infinite_gradient_stops_the_run_before_it_reaches_the_weights(tmp_path):
    class Steep(Model):
        def loss(self, batch, draws):
            # The square root of zero: a finite loss with an infinite slope.
            return StepLoss((self.layers[0].weight.sum() * 0.0).abs().sqrt() + super().loss(batch, draws).loss)

    model = Steep()
    before = {name: it.clone() for name, it in model.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match=r"step 1, .*the gradient's norm is"):
        train(model, stream, Run(tmp_path), CONFIG, OPTIM)
    assert all(torch.equal(before[name], it) for name, it in model.state_dict().items())


def test_a_full_disk_is_one_clear_error_and_spares_the_checkpoint(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report):
        if report.step == 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))

    try:
        with pytest.raises(CheckpointError, match=r"step-000000010: could not be written .*earlier checkpoints are"):
            go(tmp_path, config=replace(CONFIG, log_every=100), on_step=fill, evaluate=None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: could not be written .*checkpoints are intact"):
            go(tmp_path / "log", config=replace(CONFIG, save_every=100), on_step=fill, evaluate=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == [5]
    read_checkpoint(tmp_path / "checkpoints" / "step-000000005")
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_load_trained_gives_the_averaged_weights(undisturbed):
    folder, _, numbers, _ = undisturbed
    model = Model()
    assert load_trained(model, folder / "checkpoints") == numbers["best"]["step"]
    assert load_trained(model, folder / "checkpoints", "latest") == 20
    saved = read_tensors(folder / "checkpoints" / "step-000000020" / "ema.safetensors")
    assert all(torch.equal(saved[name], it) for name, it in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"weights of another model: 0\.weight is missing"):
        load_trained(torch.nn.Sequential(torch.nn.Linear(4, 8)), folder / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_trained(model, folder / "nowhere")


def test_without_average_and_without_evaluation(tmp_path):
    state = go(tmp_path, config=replace(CONFIG, ema_decay=None), evaluate=None)
    assert state.averaged is state.model
    assert state.best is None
    assert load_trained(Model(), tmp_path / "checkpoints") == 20


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="ended after 3 of 20 steps"):
        go(tmp_path / "a", data=lambda step: iter([Rows(torch.randn(8, 4))] * 3))
    with pytest.raises(ConfigError, match="best_metric is 'size', which the evaluation does not give; it gives cosine"):
        go(tmp_path / "b", evaluate=lambda model: {"cosine": 1.0})
    with pytest.raises(ConfigError, match=r"train\.steps is 0"):
        TrainConfig(steps=0)
    with pytest.raises(ConfigError, match=r"ema_decay is 1\.0"):
        TrainConfig(ema_decay=1.0)


def test_evaluation_sees_the_average_in_eval_mode_and_training_goes_on(tmp_path, undisturbed):
    def nosy(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(100)
        return size(model)

    state = go(tmp_path, evaluate=nosy)
    assert state.model.training
    assert_same(bits(state), undisturbed[1])


def test_state_json_is_plain_json(undisturbed):
    content = json.loads((undisturbed[0] / "checkpoints" / "step-000000020" / "state.json").read_text())
    assert content["numbers"]["step"] == 20
    assert content["identity"]["optim"]["betas"] == [0.9, 0.99]
