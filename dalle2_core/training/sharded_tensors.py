"""Tensors of a checkpoint on disk: whole in one file, or some rows of each in the file of every process.

model.safetensors                          whole
model-00001-of-00002.safetensors …         sharded: rows of the first process, of the second
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from dalle2_core.errors import CheckpointError
from dalle2_core.files import write_tensors

_FIRST_ROWS = "first_rows"


def own_rows(tensor: DTensor) -> tuple[int, int]:
    """[start, stop) of this process among the rows of a tensor, as `fully_shard` cuts it: as torch.chunk."""
    rows, world = tensor.shape[0], tensor.device_mesh.size()
    most = -(-rows // world)
    start = min(tensor.device_mesh.get_local_rank() * most, rows)
    return start, min(start + most, rows)


def write_stored(folder: Path, part: str, tensors: Mapping[str, Tensor], rank: int, world: int) -> Path | None:
    """Write this process's rows of the sharded tensors; the first one's file also gets those that are not sharded.

    Where none is, that is one file with all of them, and None in the other processes. Raises OSError.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        path = folder / f"{part}.safetensors"
        if rank == 0:
            write_tensors(path, tensors)
        return path if rank == 0 else None
    mine, first_rows = {}, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            mine[name], first_rows[name] = tensor.to_local(), own_rows(tensor)[0]
        elif rank == 0:
            mine[name] = tensor
    path = folder / f"{part}-{rank + 1:05d}-of-{world:05d}.safetensors"
    write_tensors(path, mine, {_FIRST_ROWS: json.dumps(first_rows)})
    return path


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one part of a checkpoint, on the CPU, read when they are asked for and joined from their files.

    shapes: of each, whole. Raises CheckpointError for files that do not make whole tensors.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(paths):
            try:
                file: Any = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise CheckpointError(f"{path}: no such file") from None
            except (OSError, SafetensorError) as problem:
                raise CheckpointError(f"{path}: not a whole safetensors file ({problem})") from problem
            first_rows = json.loads((file.metadata() or {}).get(_FIRST_ROWS, "{}"))
            for name in file.keys():  # noqa: SIM118  # no mapping: it has keys alone
                self._add(path, name, tuple(file.get_slice(name).get_shape()), first_rows.get(name, 0), file)

    def __getitem__(self, name: str) -> Tensor:
        pieces = self._pieces[name]
        if len(pieces) == 1:
            whole: Tensor = pieces[0][2].get_tensor(name)
            return whole
        return self.rows(name, 0, self.shapes[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, of which no others are read."""
        found = [
            file.get_slice(name)[max(start, first) - first : min(stop, last) - first]
            for first, last, file in self._pieces[name]
            if max(start, first) < min(stop, last)
        ]
        return torch.cat(found) if found else self._pieces[name][0][2].get_slice(name)[:0]

    def laid_out_as(self, like: Tensor, name: str) -> Tensor:
        """A tensor with the shape of `like`: where that is sharded, this process's rows of it alone are read."""
        if not isinstance(like, DTensor):
            return self[name]
        local = self.rows(name, *own_rows(like)).to(like.device)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def _add(self, path: Path, name: str, shape: tuple[int, ...], first: int, file: Any) -> None:
        rows = shape[0] if shape else 1
        pieces = self._pieces.setdefault(name, [])
        if first != (pieces[-1][1] if pieces else 0):
            raise CheckpointError(f"{path}: rows of {name} are missing before it")
        if rows or not pieces:
            pieces.append((first, first + rows, file))
        self.shapes[name] = (first + rows, *shape[1:]) if shape else shape
