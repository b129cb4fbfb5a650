"""Rows of tensors in several files are the tensors, whoever wrote how many of them."""

import json

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from dalle2_core.errors import CheckpointError
from dalle2_core.files import write_tensors
from dalle2_core.training.sharded_tensors import StoredTensors, write_stored


def written(folder, tensors, world):
    """The files of `world` processes, each with the rows that torch.chunk gives it."""
    paths = []
    for rank in range(world):
        mine, first_rows = {}, {}
        for name, tensor in tensors.items():
            parts = tensor.chunk(world) if tensor.ndim else (tensor,)
            mine[name] = parts[rank] if rank < len(parts) else tensor[:0] if tensor.ndim else None
            first_rows[name] = sum(len(part) for part in parts[:rank]) if tensor.ndim else 0
        paths.append(folder / f"model-{rank + 1:05d}-of-{world:05d}.safetensors")
        mine = {name: tensor.clone() for name, tensor in mine.items() if tensor is not None}
        write_tensors(paths[-1], mine, {"first_rows": json.dumps(first_rows)})
    return paths


@hypothesis.given(world=st.integers(1, 5), rows=st.integers(1, 9), cut=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_rows_of_any_number_of_files_make_the_tensor(tmp_path_factory, world, rows, cut):
    tensors = {"wide": torch.randn(rows, 3), "flat": torch.randn(rows), "step": torch.tensor(7.0)}
    stored = StoredTensors(written(tmp_path_factory.mktemp("stored"), tensors, world))
    assert stored.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    start, stop = sorted(min(at, rows) for at in cut)
    for name, tensor in tensors.items():
        assert torch.equal(stored[name], tensor)
        if tensor.ndim:
            assert torch.equal(stored.rows(name, start, stop), tensor[start:stop])


def test_what_is_not_sharded_is_one_file_of_the_first_process(tmp_path):
    tensors = {"weight": torch.randn(4, 2)}
    assert write_stored(tmp_path, "model", tensors, 1, 2) is None
    assert write_stored(tmp_path, "model", tensors, 0, 2) == tmp_path / "model.safetensors"
    assert torch.equal(StoredTensors([tmp_path / "model.safetensors"])["weight"], tensors["weight"])


def test_rows_that_are_missing_are_said(tmp_path):
    paths = written(tmp_path, {"weight": torch.randn(9, 2)}, 3)
    with pytest.raises(CheckpointError, match="model-00003-of-00003.safetensors: rows of weight are missing before it"):
        StoredTensors([paths[0], paths[2]])
    paths[1].write_bytes(b"no numbers")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        StoredTensors(paths)
