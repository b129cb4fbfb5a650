"""A batch cut into parts or over processes gives the numbers of the whole batch; killed processes go on exactly."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle2_core.errors import ConfigError, NonFiniteLoss
from dalle2_core.files import read_tensors
from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
from dalle2_core.priors.diffusion import DiffusionPrior
from dalle2_core.training import OptimConfig, Run, TrainConfig, join_processes, train
from dalle2_core.training.metrics_log import read_metrics
from dalle2_core.types import PriorBatch, StepLoss
from tests.launched import finish

CONFIG = TrainConfig(steps=12, batch_size=22, log_every=1, evaluate_every=6, save_every=4, ema_decay=0.9)
OPTIM = OptimConfig(lr=3e-3, warmup_steps=3, weight_decay=0.1)


def prior(self_cond=True, dropout=0.0):
    torch.manual_seed(0)
    net = DiffusionPriorNetwork(dim=8, depth=1, heads=2, dim_head=4, self_cond=self_cond, ff_dropout=dropout)
    return DiffusionPrior(net, timesteps=20, cond_drop_prob=0.3)


def whole_batches(step):
    """Global batches; which rows a process takes is not the point here."""
    while True:
        draws = torch.Generator().manual_seed(step)
        text, image = (torch.nn.functional.normalize(torch.randn(22, 8, generator=draws), dim=1) for _ in range(2))
        yield PriorBatch(text, image)
        step += 1


def go(folder, config=CONFIG, model=None, on_step=None, stream=whole_batches, evaluate=None):
    together = join_processes("cpu")
    start, stop = together.share(config.batch_size)
    return train(
        model or prior(),
        lambda step: (batch.part(start, stop) for batch in stream(step)),
        Run(Path(folder)),
        config,
        OPTIM,
        on_step=on_step,
        evaluate=evaluate,
        processes=together,
    )


def losses(folder):
    return [it["loss"] for it in read_metrics(Path(folder) / "metrics.jsonl") if it["kind"] == "train"]


def final(folder):
    newest = max((Path(folder) / "checkpoints").glob("step-*"))
    return {name: read_tensors(newest / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}


def assert_near(one, other, tolerance=1e-5):
    for part in one:
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            torch.testing.assert_close(tensor, other[part][name], rtol=1e-3, atol=tolerance)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    go(folder)
    return folder


@pytest.mark.parametrize("parts", [3, 22])
def test_a_batch_taken_in_parts_trains_as_the_whole(tmp_path, alone, parts):
    go(tmp_path, replace(CONFIG, accumulate=parts))
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
    assert_near(final(tmp_path), final(alone))


def test_bfloat16_trains_alike_and_keeps_float32_weights(tmp_path, alone):
    go(tmp_path, replace(CONFIG, precision="bfloat16"))
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=0.05)
    assert losses(tmp_path) != losses(alone)
    assert all(tensor.dtype == torch.float32 for part in final(tmp_path).values() for tensor in part.values())


def test_parts_may_change_in_the_middle_of_a_run(tmp_path, alone):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, replace(CONFIG, accumulate=3), on_step=_interrupt_at(5))
    go(tmp_path, replace(CONFIG, accumulate=1))
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)


def _interrupt_at(step):
    def stop(report):
        if report.step == step:
            raise KeyboardInterrupt

    return stop


def test_a_bad_row_is_named_by_its_part(tmp_path):
    def poisoned(step):
        for number, batch in enumerate(whole_batches(step), start=step + 1):
            if number == 3:
                batch.image_embed[13] = math.nan
            yield batch

    with pytest.raises(NonFiniteLoss, match=r"step 3, samples 58 to 61: the loss is nan"):
        go(tmp_path, replace(CONFIG, accumulate=5), stream=poisoned)


def test_batches_that_cannot_be_cut_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size 22 is less than .* give at least 23"):
        go(tmp_path / "a", replace(CONFIG, accumulate=23))

    class Comparing(torch.nn.Linear):
        compares_rows = True

        def loss(self, batch, draws):
            return StepLoss(self(batch.text_embed).square().mean())

    with pytest.raises(ConfigError, match="the loss of a Comparing compares the rows"):
        go(tmp_path / "b", replace(CONFIG, accumulate=2), model=Comparing(8, 8))
    go(tmp_path / "c", replace(CONFIG, steps=1), model=Comparing(8, 8))
    with pytest.raises(ConfigError, match=r"the stream gave 21 rows to process 0 of 1; 22 of train\.batch_size 22"):
        go(tmp_path / "d", stream=lambda step: (batch.part(0, 21) for batch in whole_batches(step)))


def test_accelerate_must_not_change_the_numbers():
    from types import SimpleNamespace

    from dalle2_core.training import Processes

    with pytest.raises(ConfigError, match=r"mixed_precision=bf16; .*train\.precision=bfloat16"):
        Processes(SimpleNamespace(mixed_precision="bf16", gradient_accumulation_steps=1))
    with pytest.raises(ConfigError, match=r"train\.accumulate"):
        Processes(SimpleNamespace(mixed_precision="no", gradient_accumulation_steps=4))
    sharding = SimpleNamespace(fsdp_plugin=object())
    with pytest.raises(ConfigError, match=r"train\.parallel=fsdp"):
        Processes(SimpleNamespace(mixed_precision="no", gradient_accumulation_steps=1, state=sharding))


def test_what_cannot_be_sharded_is_refused():
    from types import SimpleNamespace

    from dalle2_core.training.parallel import place_model

    class Moving(torch.nn.Linear):
        def after_step(self, together):
            pass

    with pytest.raises(ConfigError, match=r"a Moving learns by more than gradients.*train\.parallel=ddp"):
        place_model(Moving(2, 2), replace(CONFIG, parallel="fsdp"), SimpleNamespace(world=2))
    with pytest.raises(ConfigError, match="known: ddp, fsdp"):
        replace(CONFIG, parallel="fsdp2")


SCRIPT = """
import os, signal, sys
import torch
from dataclasses import replace
from tests.unit.dalle2_core.training import test_processes as t

torch.set_num_threads(1)
rank = int(os.environ["RANK"])

def die(folder, killed):
    def at(report):
        marker = t.Path(folder) / "was-killed"
        if report.step == 7 and rank == killed and not marker.exists():
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return at

def judged(model):
    return {"loss": float(sum(it.square().sum() for it in model.parameters()))}

for told in sys.argv[1:]:  # one training after the other
    folder, killed, parts, dropout = told.split(",")
    config, model = replace(t.CONFIG, accumulate=int(parts)), t.prior(dropout=float(dropout))
    t.go(folder, config, model=model, on_step=die(folder, int(killed)), evaluate=judged)
"""
NEVER = -1


def torchrun(root, *trainings, restarts=0):
    """Run SCRIPT in two processes. trainings: (folder below `root`, rank that is killed, parts, dropout)."""
    script = root / "script.py"
    script.write_text(SCRIPT)
    told = [f"{root / folder},{killed},{parts},{dropout}" for folder, killed, parts, dropout in trainings]
    code, said = finish(script, *told, restarts=restarts)
    assert code == 0, said[-3000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder of trainings by two processes that nothing disturbed."""
    root = tmp_path_factory.mktemp("two")
    torchrun(root, ("plain", NEVER, 1, 0.0), ("dropout", NEVER, 1, 0.5), ("calm", NEVER, 2, 0.2))
    return root


@pytest.mark.slow
def test_two_processes_train_as_one(two, alone):
    assert losses(two / "plain") == pytest.approx(losses(alone), abs=1e-5)
    assert_near(final(two / "plain"), final(alone))
    kinds = [it["kind"] for it in read_metrics(two / "plain" / "metrics.jsonl")]
    assert kinds.count("valid") == kinds.count("online") == 2, "the first process alone evaluates and writes"


@pytest.mark.slow
def test_two_processes_draw_the_dropout_of_one_that_takes_the_batch_in_two_parts(two, tmp_path):
    go(tmp_path / "one", replace(CONFIG, accumulate=2), model=prior(dropout=0.5))
    assert losses(two / "dropout") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_bits_are_those_of_an_undisturbed_run(two, tmp_path):
    """The first process is killed in one training, and the second in the next."""
    torchrun(tmp_path, ("first", 0, 2, 0.2), ("second", 1, 2, 0.2), restarts=2)
    calm = final(two / "calm")
    for name in ("first", "second"):
        assert (tmp_path / name / "was-killed").exists()
        hit = final(tmp_path / name)
        for part in calm:
            assert [name for name in calm[part] if not torch.equal(calm[part][name], hit[part][name])] == []
        assert losses(tmp_path / name) == losses(two / "calm")
