"""Loggers besides metrics.jsonl: each gets every number, and a resumed run goes on in the same place."""

import sys

import pytest

from dalle2_core.errors import ConfigError
from dalle2_core.training import TrainConfig
from dalle2_core.training.config import Run
from dalle2_core.training.loggers import LOGGERS
from dalle2_core.training.metrics_log import open_logs

STEPS = {"train": 4, "valid": 0, "online": 0}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "wandb" else []) for name in sorted(LOGGERS)]
)
def test_every_logger_takes_numbers_resumes_and_ends(tmp_path, monkeypatch, name):
    """The contract; wandb without a network."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for last_step in (0, 4):
        logger = LOGGERS[name](tmp_path, last_step)
        logger.write("train", last_step + 1, 32, {"loss": 0.5, "broken": float("nan")})
        logger.write("valid", last_step + 1, 32, {"loss": 0.25})
        logger.close()
    assert any(tmp_path.iterdir())


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path)
    logs = open_logs(run, ("tensorboard",), {"train": 0, "valid": 0, "online": 0})
    for step in (2, 4, 6):
        logs.write("train", step, step * 8, {"loss": 1 / step})
    logs.close()
    # Killed after step 6, resumed from the checkpoint of step 4: 6 comes again.
    resumed = open_logs(run, ("tensorboard",), STEPS)
    resumed.write("train", 6, 48, {"loss": 9.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(it.step, round(it.value, 4)) for it in events.Scalars("loss/train")]
    assert scalars == [(2, 0.5), (4, 0.25), (6, 9.0)]
    assert run.metrics.read_text().count('"step": 6') == 1


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"the logger 'wandb' needs the package wandb \(pip install 'embedpipe\[wandb\]"
    ):
        LOGGERS["wandb"](tmp_path, 0)
    with pytest.raises(ConfigError, match="no logger 'tensorbord'; did you mean tensorboard"):
        TrainConfig(loggers=("tensorbord",))
