"""Two processes that hold a share of the model each train as one that holds it all, and either goes on from the other.

What takes two processes is done by one start of torchrun (see `main`); the tests look at what it left.
"""

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle2_core.training import join_processes, train
from dalle2_core.training.checkpoint import read_checkpoint
from dalle2_core.training.config import Run
from dalle2_core.training.metrics_log import read_metrics
from tests.launched import finish
from tests.unit.dalle2_core.training import test_decoder_processes as stages
from tests.unit.dalle2_core.training import test_processes as priors

SHARDED = replace(priors.CONFIG, parallel="fsdp")


def judged(model):
    """What the first process sees of a model: all of its weights."""
    return {"loss": float(sum(it.square().sum() for it in model.parameters()))}


def go(folder, config=priors.CONFIG, on_step=None):
    return priors.go(folder, config, on_step=on_step, evaluate=judged)


def interrupt_at(step):
    def stop(report):
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return stop


def main(root):
    """In each of two processes: runs that are whole, interrupted, continued; and a stage of a decoder."""
    torch.set_num_threads(1)
    import dalle2_core.training.loop

    dalle2_core.training.loop.plot_curves = lambda metrics, picture: None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    go(root / "whole", SHARDED)
    try:
        # The second process alone is interrupted; the first hears of it, or they would wait for each other for ever.
        go(root / "stopped", SHARDED, interrupt_at(7) if join_processes("cpu").rank else None)
    except KeyboardInterrupt:
        (root / f"stopped-{join_processes('cpu').rank}").touch()
    go(root / "begun-by-one", replace(SHARDED, accumulate=2))
    model = priors.prior()
    stages.go(root / "stage", replace(stages.CONFIG, parallel="fsdp"))
    state = train_and_keep(model, root / "kept")
    assert all(it.numel() for it in model.parameters()), "the given model has the trained weights"
    assert state.sharded


def train_and_keep(model, folder):
    together = join_processes("cpu")
    start, stop = together.share(SHARDED.batch_size)
    return train(
        model,
        lambda step: (batch.part(start, stop) for batch in priors.whole_batches(step)),
        Run(folder),
        replace(SHARDED, steps=2),
        priors.OPTIM,
        processes=together,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dalle2_core.training.loop.plot_curves", lambda metrics, picture: None)
        go(folder / "prior")
        stages.go(folder / "stage")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    with pytest.raises(KeyboardInterrupt):
        go(root / "begun-by-one", on_step=interrupt_at(5))
    code, said = finish("-m", "tests.unit.dalle2_core.training.test_sharded_training", root)
    assert code == 0, said[-4000:]
    return root


def last(folder):
    """The newest checkpoint's tensors by part, and every number of the log but the time."""
    content, parts = read_checkpoint(max((Path(folder) / "checkpoints").glob("step-*")))
    lines = read_metrics(Path(folder) / "metrics.jsonl")
    logged = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    return content["numbers"]["step"], {part: dict(tensors) for part, tensors in parts.items()}, logged


def assert_like(folder, expected, rtol=0.0):
    (step, parts, logged), (step_there, parts_there, logged_there) = last(folder), last(expected)
    assert step == step_there
    assert parts.keys() == parts_there.keys()
    for part, tensors in parts.items():
        assert tensors.keys() == parts_there[part].keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, parts_there[part][name], rtol=rtol, atol=1e-5, msg=f"{part} {name}")
    assert len(logged) == len(logged_there)
    for line, line_there in zip(logged, logged_there, strict=True):
        assert line.pop("kind") == line_there.pop("kind")
        assert line == pytest.approx(line_there, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole", "begun-by-one"])
def test_sharded_over_two_processes_it_trains_as_in_one(alone, two, name):
    assert_like(two / name, alone / "prior")


@pytest.mark.slow
def test_a_stage_of_a_decoder_trains_sharded_as_well(alone, two):
    # FSDP2 keeps convolutions' weights in another layout: sums in another order, and Adam makes much of it where a
    # gradient is next to nothing (4 of 162,252 weights were off by up to 6e-5).
    assert_like(two / "stage", alone / "stage", rtol=1e-3)


@pytest.mark.slow
def test_each_process_writes_its_rows(two):
    folder = max((two / "whole" / "checkpoints").glob("step-*"))
    bytes_of = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert len(bytes_of) == 6
    for part in ("model", "ema", "optimizer"):
        first, second = bytes_of[f"{part}-00001-of-00002.safetensors"], bytes_of[f"{part}-00002-of-00002.safetensors"]
        assert 0.6 < second / first <= 1
    rows = [load_file(path) for path in sorted(folder.glob("model-*"))]
    name = "net.causal_transformer.layers.0.0.to_q.weight"
    assert [len(some[name]) for some in rows] == [4, 4]


@pytest.mark.slow
def test_interrupted_in_one_process_all_save_and_one_process_goes_on(alone, two, tmp_path, caplog):
    assert (two / "stopped-0").exists()
    assert (two / "stopped-1").exists()
    assert last(two / "stopped")[0] == 7
    shutil.copytree(two / "stopped", tmp_path / "whole")
    go(tmp_path / "whole")
    assert_like(tmp_path / "whole", alone / "prior")

    shutil.copytree(two / "stopped", tmp_path / "torn")
    torn = tmp_path / "torn" / "checkpoints" / "step-000000007" / "ema-00002-of-00002.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")
    go(tmp_path / "torn")
    assert "ema-00002-of-00002.safetensors: missing or corrupt (its checksum differs); the one before it" in caplog.text
    assert_like(tmp_path / "torn", alone / "prior")
