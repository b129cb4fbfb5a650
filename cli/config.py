"""preset < --config file < --set: one frozen configuration, each mistake named with its key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import pydantic

from embedpipe.errors import did_you_mean

_Config = TypeVar("_Config")


def resolve(preset: _Config, config_file: str | None, settings: Sequence[str]) -> _Config:
    """`preset` (a dataclass of plain values, nested) with a JSON file's and then --set's values put in.

    Raises click.UsageError for an unknown key (naming the near ones), a value of the wrong type, or an unreadable file.
    """
    assert dataclasses.is_dataclass(preset)
    assert not isinstance(preset, type)
    values = dataclasses.asdict(preset)
    if config_file is not None:
        _overlay(values, _read(config_file), config_file)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: write it as key=value, for example optim.lr=1e-4")
        _overlay(values, _nested(key.strip().split("."), _parse(text)), f"--set {setting}")
    try:
        return pydantic.TypeAdapter(type(preset)).validate_python(values)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"{where}: {message}" if where else message) from problem


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise click.UsageError(f"{path}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise click.UsageError(f"{path}: not JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise click.UsageError(f"{path}: holds a {type(content).__name__}, not an object of settings")
    return content


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a bare word is a string


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if len(path) > 1 else value}


def _overlay(values: dict[str, Any], changes: dict[str, Any], source: str, path: str = "") -> None:
    for name, value in changes.items():
        full = f"{path}{name}"
        if name not in values:
            raise click.UsageError(f"{source}: no setting {full!r}. {did_you_mean(name, values)}")
        if isinstance(values[name], dict) and isinstance(value, dict):
            _overlay(values[name], value, source, f"{full}.")
        elif isinstance(values[name], dict):
            raise click.UsageError(f"{source}: {full} is a group. It holds {', '.join(values[name])}")
        else:
            values[name] = value
