"""encode of a finished output: no model is loaded, unless it may be another one."""

import os
import shutil
import time
from pathlib import Path

import pytest

from embedpipe.encode import ENCODERS
from embedpipe.encode.crashed_run import noted
from embedpipe.encode.job import encode
from embedpipe.errors import RunMismatch
from tests import shards


@pytest.fixture
def loads(monkeypatch):
    """Names of the models that are loaded, which still happens."""
    loaded, load = [], ENCODERS["open_clip"]
    monkeypatch.setitem(ENCODERS, "open_clip", lambda *asked: loaded.append(asked[0].model) or load(*asked))
    return loaded


@pytest.fixture
def finished(tmp_path, tiny_model, encode_config, loads):
    """Input, output, and a config with a model of its own."""
    model = str(shutil.copytree(tiny_model, tmp_path / "model"))
    source, out = shards.write_shards(tmp_path / "in", shards=2), str(tmp_path / "emb")
    config = encode_config(model=model)
    first = encode(source, out, config)
    assert loads.pop() == model
    return source, out, config, first


def test_a_finished_output_is_reported_without_the_model(finished, loads):
    source, out, config, first = finished
    before = shards.tree(out)
    again = encode(source, out, config)
    assert loads == []
    assert (again.rows, again.already, again.planned, again.rejects) == (first.rows, 2, 2, first.rejects)
    assert again.report.rows == 0
    assert shards.tree(out) == before


def test_what_a_run_left_that_was_killed_at_its_end_is_taken_away(finished, loads):
    source, out, config, _ = finished
    before = shards.tree(out)
    with noted(out, None):
        shutil.copytree(out, f"{out}-killed")
    (Path(f"{out}-killed") / "img_emb" / ".tmp-1-x").write_bytes(b"torn")
    assert ".encoding" in shards.tree(f"{out}-killed")
    encode(source, f"{out}-killed", config)
    assert loads == []
    assert shards.tree(f"{out}-killed") == before


def test_what_is_left_is_encoded(finished, loads):
    source, out, config, first = finished
    os.truncate(min(it.path for it in os.scandir(f"{out}/img_emb")), 7)
    again = encode(source, out, config)
    assert len(loads) == 1
    assert (len(again.redone), again.rows) == (1, first.rows)
    shards.write_tar(f"{source}/00009.tar", shards.samples(3, first=50))
    assert encode(source, out, config).rows == first.rows + 3


def test_another_model_in_its_place_is_loaded_and_refused(finished, loads, other_model):
    source, out, config, _ = finished
    shutil.copytree(other_model, config.encoder.model, dirs_exist_ok=True)
    for file in os.scandir(config.encoder.model):
        os.utime(file.path, (time.time() + 9,) * 2)
    with pytest.raises(RunMismatch, match="encoder"):
        encode(source, out, config)
    assert len(loads) == 1


def test_another_dtype_is_refused_as_before(finished, loads, encode_config):
    source, out, config, _ = finished
    with pytest.raises(RunMismatch):
        encode(source, out, encode_config(model=config.encoder.model, dtype="float32"))
    assert len(loads) == 1
