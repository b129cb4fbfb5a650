"""Files that appear whole or not at all, on a local disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dalle2_core.errors import CheckpointError


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; on success it takes the place of `path`, on failure it is removed.

    Its mode is that of any new file in the folder, whoever wrote it: safetensors lets only the owner read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays last: matplotlib picks its format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        if temporary.stat().st_mode & 0o777 != mode:
            temporary.chmod(mode)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """A text stream at the end of `path`, which is created if missing. Raises OSError, also if it is a link."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "a", encoding="utf-8") as stream:
        yield stream


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError met while writing `path` into a CheckpointError."""
    try:
        yield
    except OSError as problem:
        raise CheckpointError(
            f"{path}: could not be written ({problem.strerror or problem}); checkpoints are intact. Make room or "
            "correct the permissions, then run the same command again"
        ) from problem


def write_json(path: Path, value: object) -> None:
    """Write JSON whole. Non-finite numbers are refused: JSON has none."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises CheckpointError if the file is missing or is not JSON."""
    _require_plain(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise CheckpointError(f"{path}: cannot be read as JSON ({problem})") from problem


def _require_plain(path: Path) -> None:
    """Raise CheckpointError for a pipe, which would be waited for, a device or a folder."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: not a file, but a folder, pipe or device")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole. Tensors that share memory are stored once each."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()  # in this order: a GPU need not hold a copy in another layout
        # safetensors refuses two names for one memory, which tied weights are.
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in seen else plain
        seen.add(place)
    with replaced(path) as temporary:
        try:
            save_file(apart, temporary, None if metadata is None else dict(metadata))
        except SafetensorError as problem:
            raise OSError(f"{path}: {problem}") from problem


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU. Raises CheckpointError if it is missing or damaged."""
    _require_plain(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(f"{path}: not a whole safetensors file ({problem})") from problem


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    _require_plain(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
