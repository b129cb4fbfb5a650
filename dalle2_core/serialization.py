"""A model as a folder: config.json says what it is, model.safetensors holds its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_json, read_tensors, write_json, write_tensors

FORMAT_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# What else of ours a folder without a config may be.
_OTHER_FOLDERS = {
    "trainer.json": "a checkpoint of a DecoderTrainer, which its `load` reads; `Decoder.save` writes a model",
    "state.json": "a trainer's checkpoint, which its `load` reads; the model's own `save` writes a model",
    "checkpoints": "a run without a model; has its training been finished?",
}


def write_model(folder: Path | str, kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files, each whole. settings: plain JSON values.

    Raises CheckpointError if the disk refuses, or the folder holds something else than a model of this kind.
    """
    folder = Path(folder)
    refuse_other_kind(folder, kind)
    try:
        write_tensors(folder / _WEIGHTS, tensors)
    except OSError as problem:
        raise CheckpointError(f"{folder}: could not be written ({problem.strerror or problem})") from problem
    write_settings(folder, kind, settings)


def write_settings(folder: Path | str, kind: str, settings: Mapping[str, Any]) -> None:
    """Write config.json alone, whole: of what consists of other folders. Raises CheckpointError as `write_model`."""
    refuse_other_kind(Path(folder), kind)
    try:
        write_json(Path(folder) / _CONFIG, {"kind": kind, "format_version": FORMAT_VERSION, **settings})
    except OSError as problem:
        raise CheckpointError(f"{folder}: could not be written ({problem.strerror or problem})") from problem


def refuse_other_kind(folder: Path, kind: str) -> None:
    """Raise CheckpointError if the folder holds a model that is not of this kind."""
    if not (folder / _CONFIG).exists():
        return
    try:
        found = f"a {read_kind(folder)}"
    except CheckpointError:
        found = "another program's model"
    if found != f"a {kind}":
        raise CheckpointError(f"{folder}: holds {found}; a {kind} saved there would overwrite it. Give another folder")


def read_kind(folder: Path | str) -> str:
    """What the folder holds, such as "diffusion-prior". Raises CheckpointError if it is no model's folder."""
    path = Path(folder) / _CONFIG
    for other, what in _OTHER_FOLDERS.items():
        if not path.exists() and (Path(folder) / other).exists():
            raise CheckpointError(f"{folder}: {what}")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise CheckpointError(f"{path}: not a model's config")
    return str(content["kind"])


def read_settings(folder: Path | str, kind: str, what: str) -> dict[str, Any]:
    """The settings that `write_model` was given. `what` names the kind of model in words, for the error.

    Raises CheckpointError for another kind or format.
    """
    found = read_kind(folder)
    if found != kind:
        raise CheckpointError(f"{Path(folder) / _CONFIG}: not {what}'s config, but of kind {found!r}")
    content: dict[str, Any] = read_json(Path(folder) / _CONFIG)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: {kind} format {version}; this version reads {FORMAT_VERSION}")
    return content


@contextmanager
def settings_of(folder: Path | str) -> Iterator[None]:
    """What is wrong with settings read from a folder becomes a CheckpointError that names the file."""
    try:
        yield
    except KeyError as problem:
        raise CheckpointError(f"{Path(folder) / _CONFIG}: {problem} is missing") from problem
    except (TypeError, ConfigError) as problem:
        raise CheckpointError(f"{Path(folder) / _CONFIG}: {problem}") from problem


def read_weights(folder: Path | str, model: nn.Module) -> None:
    """Put the numbers into a model that was made from the settings. Raises CheckpointError if they do not fit."""
    tensors = read_tensors(Path(folder) / _WEIGHTS)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as problem:
        raise CheckpointError(f"{folder}: weights and config.json do not belong together ({problem})") from problem
