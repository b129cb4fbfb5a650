"""Weights that are more than weights: our own words, and never torch's advice."""

import json
import os
import shutil

import numpy as np
import pytest
import torch


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("name", ["open_clip_model.bin", "open_clip_model.pth"])
def test_encode_says_what_a_pickle_holds(tmp_path, tiny_model, encoded_once, embedpipe, name):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"state_dict": Runs()}, folder / name)
    done = embedpipe("encode", encoded_once[0], tmp_path / "out", "--model", folder, "--gpus", "0")
    assert done.exit_code == 1
    assert "weights_only" not in done.output
    assert "nothing of it was loaded" in done.stderr
    assert "posix.system" in done.stderr


def test_a_score_head_likewise(tmp_path, encoded, embedpipe):
    torch.save(Runs(), tmp_path / "head.pth")
    (tmp_path / "head.json").write_text(json.dumps({"model": "x"}))
    done = embedpipe(*_filter_by_head(encoded, tmp_path))
    assert done.exit_code == 1
    assert "weights_only" not in done.output
    assert "nothing of it was loaded" in done.stderr


def test_a_script_of_torch_is_named_as_one(tmp_path, encoded, embedpipe):
    torch.jit.save(torch.jit.script(torch.nn.Linear(16, 1)), tmp_path / "head.pth")
    done = embedpipe(*_filter_by_head(encoded, tmp_path))
    assert done.exit_code == 1
    assert "weights_only" not in done.output
    assert "TorchScript" in done.stderr


def test_convert_likewise(tmp_path, embedpipe):
    torch.save({"model": Runs(), "array": np.zeros(3)}, tmp_path / "it.pth")
    done = embedpipe("convert", tmp_path / "it.pth", tmp_path / "out")
    assert done.exit_code != 0
    assert "weights_only" not in done.output


def _filter_by_head(emb, folder):
    """`filter` by the score head in `folder`, said to be of the data set's own model."""
    from embedpipe import manifest

    model = manifest.read_run(str(emb)).encoder.weights_sha256[:12]
    return "filter", emb, folder / "out", "--head", folder / "head.pth", "--min-score", "0", "--head-model", model
