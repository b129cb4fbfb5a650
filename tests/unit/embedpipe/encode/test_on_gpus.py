"""Encoding on GPUs that are pretended: who loads what where, and what each process would see."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from embedpipe import manifest
from embedpipe.encode import job, worker
from embedpipe.encode.job import encode
from embedpipe.execute import Outcome, ProcessExecutor, resources
from embedpipe.progress import TaskReport
from tests import shards


class Loaded(Exception):
    """A worker has got as far as loading its encoder."""


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, of which nothing can be used; the work that processes are given is kept."""
    monkeypatch.setattr(resources, "_gpus_here", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    given = []

    def run(self, work, tasks, listen):
        given.append(work)
        return Outcome(TaskReport(), ())

    monkeypatch.setattr(ProcessExecutor, "run", run)
    return given


@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_the_process_that_starts_workers_loads_nothing_on_a_gpu(
    precision, two_gpus, tmp_path, encode_config, monkeypatch
):
    source, out, devices = shards.write_shards(tmp_path / "in", 3, 2), str(tmp_path / "out"), []
    real = job.load_encoder
    monkeypatch.setattr(job, "load_encoder", lambda config, device: devices.append(device) or real(config, device))
    config = encode_config(gpus=None)
    encode(source, out, replace(config, encoder=replace(config.encoder, precision=precision)))
    card = manifest.read_run(out).encoder
    assert (devices, card.precision) == (["cpu"], "bf16" if precision == "auto" else precision)

    def load(config, device):
        raise Loaded(config.precision, device)

    monkeypatch.setattr(worker, "load_encoder", load)
    (work,) = two_gpus
    for number in range(2):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with pytest.raises(Loaded) as seen:
            pickle.loads(pickle.dumps(work)).start(number)
        assert seen.value.args == (precision, "cuda:0")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == str(number)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(Loaded, match="cuda:1"):  # in the caller's process, whose GPUs are its own affair
        work.start(1)
