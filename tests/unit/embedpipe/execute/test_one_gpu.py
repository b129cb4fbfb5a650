import os

import pytest
import torch

from embedpipe.execute import see_only


@pytest.mark.parametrize(
    ("before", "device", "after", "name"),
    [
        (None, "cuda:3", "3", "cuda:0"),
        (None, "cuda", "0", "cuda:0"),
        ("", "cuda:1", "1", "cuda:0"),
        ("2, 5,7", "cuda:1", "5", "cuda:0"),
        ("GPU-aa,MIG-bb", "cuda:1", "MIG-bb", "cuda:0"),
        ("6", "cuda:0", "6", "cuda:0"),  # one that a cluster has given
        ("6", "cuda:1", "6", "cuda:1"),  # torch says that there is none
        ("2,5", "cpu", "2,5", "cpu"),
        (None, "cpu", None, "cpu"),
    ],
)
def test_a_worker_sees_its_gpu_alone(before, device, after, name, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    assert (see_only(device), os.environ.get("CUDA_VISIBLE_DEVICES")) == (name, after)


def test_where_cuda_is_in_use_nothing_changes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert (see_only("cuda:1"), os.environ["CUDA_VISIBLE_DEVICES"]) == ("cuda:1", "2,5")
