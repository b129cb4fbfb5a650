"""preset < --config file < --set: one frozen configuration, each mistake named with its key."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import pydantic

from embedpipe.errors import did_you_mean

_Config = TypeVar("_Config")


def resolve_config(preset: _Config, config_file: str | None, settings: Sequence[str]) -> _Config:
    """`preset` (a dataclass of plain values, nested) with a JSON file's and then --set's values put in.

    Raises click.UsageError for an unknown key (naming the near ones), a value of the wrong type, or an unreadable file.
    """
    assert dataclasses.is_dataclass(preset)
    assert not isinstance(preset, type)
    values = _with_lists(dataclasses.asdict(preset))
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
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
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


def _with_lists(values: Any) -> Any:
    """Tuples of groups as lists, whose groups can be changed; other values as they are."""
    if isinstance(values, dict):
        return {name: _with_lists(value) for name, value in values.items()}
    if isinstance(values, tuple) and values and all(isinstance(value, dict) for value in values):
        return [_with_lists(value) for value in values]
    return values


def _overlay(values: dict[str, Any], changes: dict[str, Any], source: str, path: str = "") -> None:
    for name, value in changes.items():
        full = f"{path}{name}"
        if name not in values:
            raise click.UsageError(f"{source}: no setting {full!r}. {did_you_mean(name, values)}")
        if isinstance(values[name], list) and isinstance(value, dict | list):
            values[name] = _overlaid_list(values[name], value, source, full)
        elif isinstance(values[name], dict) and isinstance(value, dict):
            _overlay(values[name], value, source, f"{full}.")
        elif isinstance(values[name], dict | list):
            holds = ", ".join(values[name]) if isinstance(values[name], dict) else _numbers(values[name])
            raise click.UsageError(f"{source}: {full} is a group. It holds {holds}")
        else:
            values[name] = value


def _overlaid_list(groups: list[Any], changes: dict[str, Any] | list[Any], source: str, path: str) -> list[Any]:
    """Groups of a list, numbered from 1, some changed by number. A list says how many there are; the last repeats."""
    if isinstance(changes, list):
        groups = [copy.deepcopy(groups[min(place, len(groups) - 1)]) for place in range(len(changes))]
        changes = {str(number): value for number, value in enumerate(changes, 1)}
    for name, value in changes.items():
        if not name.isdecimal() or not 1 <= int(name) <= len(groups):
            raise click.UsageError(f"{source}: no setting '{path}.{name}'. {path} holds {_numbers(groups)}")
        if not isinstance(value, dict):
            raise click.UsageError(f"{source}: {path}.{name} is a group. It holds {', '.join(groups[0])}")
        _overlay(groups[int(name) - 1], value, source, f"{path}.{name}.")
    return groups


def _numbers(groups: list[Any]) -> str:
    return f"1 to {len(groups)}"
