"""preset < config < settings: one frozen configuration, each mistake named with its key."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from embedpipe.errors import OptionError, did_you_mean

_Config = TypeVar("_Config")
Values = Mapping[str, Any]


def resolve_config(preset: _Config, config: str | Path | Values | None, settings: Values | None = None) -> _Config:
    """`preset` (a dataclass of plain values, nested) with other values put in.

    config: a JSON file of values, or the same as nested mappings. settings: values by dotted name, the last word:
    {"optim.lr": 1e-4}. Members of a list are counted from 1: {"stages.2.optim.lr": 1e-4}.

    Raises OptionError for an unknown key (naming the near ones), a value of the wrong type, or an unreadable file.
    """
    assert dataclasses.is_dataclass(preset)
    assert not isinstance(preset, type)
    values = _with_lists(dataclasses.asdict(preset))
    if config is not None:
        _overlay(values, *(_read(str(config)) if isinstance(config, str | Path) else (config, "config")))
    for key, value in (settings or {}).items():
        _overlay(values, _nested(key.strip().split("."), value), "settings")
    try:
        return pydantic.TypeAdapter(type(preset)).validate_python(values)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise OptionError(f"{where}: {message}" if where else message) from problem


def recipe_of(
    preset: str | _Config, named: Callable[[str], _Config], config: str | Path | Values | None, settings: Values
) -> _Config:
    """`resolve_config` of a preset by its name, or of a recipe."""
    return resolve_config(named(preset) if isinstance(preset, str) else preset, config, settings)


def given_names(config: str | Path | Values | None, settings: Values | None) -> tuple[str, ...]:
    """The dotted names of all values in what `resolve_config` takes, however they are nested."""
    content = _read(str(config))[0] if isinstance(config, str | Path) else config
    return tuple(name for some in (content, settings) for name in _leaves(some or {}))


def _leaves(values: Values) -> list[str]:
    return [
        f"{name.strip()}.{leaf}" if leaf else name.strip()
        for name, value in values.items()
        for leaf in (_leaves(value) if isinstance(value, Mapping) else [""])
    ]


def train_settings(settings: Values | None, loggers: Sequence[str] = (), **short: Any) -> dict[str, Any]:
    """`settings`, and after them what was given of those of `train` that have an argument of their own."""
    short["loggers"] = tuple(loggers) or None
    return {**(settings or {}), **{f"train.{name}": value for name, value in short.items() if value is not None}}


def _read(path: str) -> tuple[Values, str]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise OptionError(f"{path}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise OptionError(f"{path}: not JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise OptionError(f"{path}: holds a {type(content).__name__}, not an object of settings")
    return content, path


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if len(path) > 1 else value}


def _with_lists(values: Any) -> Any:
    """Tuples of groups as lists, whose groups can be changed; other values as they are."""
    if isinstance(values, dict):
        return {name: _with_lists(value) for name, value in values.items()}
    if isinstance(values, tuple) and values and all(isinstance(value, dict) for value in values):
        return [_with_lists(value) for value in values]
    return values


def _overlay(values: dict[str, Any], changes: Values, source: str, path: str = "") -> None:
    for name, value in changes.items():
        full = f"{path}{name}"
        if name not in values:
            raise OptionError(f"{source}: no setting {full!r}", did_you_mean(full, [f"{path}{it}" for it in values]))
        if isinstance(values[name], list) and isinstance(value, Mapping | list):
            values[name] = _overlaid_list(values[name], value, source, full)
        elif isinstance(values[name], dict) and isinstance(value, dict):
            _overlay(values[name], value, source, f"{full}.")
        elif isinstance(values[name], dict | list):
            holds = ", ".join(values[name]) if isinstance(values[name], dict) else _numbers(values[name])
            raise OptionError(f"{source}: {full} is a group", f"It holds {holds}")
        else:
            values[name] = value


def _overlaid_list(groups: list[Any], changes: Values | list[Any], source: str, path: str) -> list[Any]:
    """Groups of a list, numbered from 1, some changed by number. A list says how many there are; the last repeats."""
    if isinstance(changes, list):
        groups = [copy.deepcopy(groups[min(place, len(groups) - 1)]) for place in range(len(changes))]
        changes = {str(number): value for number, value in enumerate(changes, 1)}
    for name, value in changes.items():
        if not name.isdecimal() or not 1 <= int(name) <= len(groups):
            raise OptionError(f"{source}: no setting '{path}.{name}'", f"{path} holds {_numbers(groups)}")
        if not isinstance(value, dict):
            raise OptionError(f"{source}: {path}.{name} is a group", f"It holds {', '.join(groups[0])}")
        _overlay(groups[int(name) - 1], value, source, f"{path}.{name}.")
    return groups


def _numbers(groups: list[Any]) -> str:
    return f"1 to {len(groups)}"
