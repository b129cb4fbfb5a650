"""Keyword arguments into a config and names into parts, with an error that names what was probably meant."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields
from typing import Any, TypeVar

from dalle2_core.errors import ConfigError

C = TypeVar("C")
V = TypeVar("V")


class Registry(MutableMapping[str, V]):
    """Parts by name, each imported when it is first looked up: the names are there at once."""

    def __init__(self, homes: Mapping[str, str]) -> None:
        """homes: "module:attribute" for each name."""
        self._homes = dict(homes)
        self._parts: dict[str, V] = {}

    def __getitem__(self, name: str) -> V:
        if name not in self._parts:
            module, _, attribute = self._homes[name].partition(":")
            self._parts[name] = getattr(importlib.import_module(module), attribute)
        return self._parts[name]

    def __setitem__(self, name: str, part: V) -> None:
        self._parts[name] = part

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._homes.pop(name, None)
        self._parts.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._homes or name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter({**self._homes, **self._parts})

    def __len__(self) -> int:
        return len({**self._homes, **self._parts})


def from_keywords(config: type[C], owner: str, keywords: Mapping[str, Any]) -> C:
    """`config(**keywords)`. Raises TypeError naming `owner` and the near names for a keyword it lacks.

    JSON has lists only; a field whose default is a tuple takes one as a tuple.
    """
    known = {item.name for item in fields(config)}  # type: ignore[arg-type]
    for name in keywords:
        if name not in known:
            raise TypeError(f"{owner} has no keyword {name!r}; {near(name, known)}")
    return config(**{name: tuple(it) if isinstance(it, list) else it for name, it in keywords.items()})


def chosen(table: Mapping[str, V], name: str, what: str) -> V:
    """`table[name]`. Raises ConfigError that says which names are known."""
    refuse_unknown(table, name, what)
    return table[name]


def refuse_unknown(table: Iterable[str], name: str, what: str) -> None:
    """Raise ConfigError, which says which names are known, if `name` is not in `table`."""
    if name not in table:
        raise ConfigError(f"no {what} {name!r}; {near(name, table)}")


def near(name: str, known: Iterable[str]) -> str:
    """A clause for an error message: the near names, and all of them where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
