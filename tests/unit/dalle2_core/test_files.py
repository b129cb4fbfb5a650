"""Files of a run are written where their names stand, not where a link leads."""

import os

import pytest

from dalle2_core.errors import CheckpointError
from dalle2_core.files import replaced
from dalle2_core.training.metrics_log import MetricLog


def test_metrics_are_not_appended_to_what_a_link_leads_to(tmp_path):
    victim, metrics = tmp_path / "victim.txt", tmp_path / "run" / "metrics.jsonl"
    victim.write_text("mine")
    metrics.parent.mkdir()
    metrics.symlink_to(victim)
    with pytest.raises(CheckpointError, match="metrics.jsonl: could not be written"):
        MetricLog(metrics).write("train", 1, 8, {"loss": 1.0})
    assert victim.read_text() == "mine"


def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path):
    victim, path = tmp_path / "victim.txt", tmp_path / "state.json"
    victim.write_text("mine")
    (tmp_path / f".state.{os.getpid()}.tmp.json").symlink_to(victim)
    with replaced(path) as temporary:
        temporary.write_text("ours")
    assert (path.read_text(), path.is_symlink(), victim.read_text()) == ("ours", False, "mine")
