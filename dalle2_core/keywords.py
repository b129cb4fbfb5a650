"""Keyword arguments into a config, with an error that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from dalle2_core.errors import ConfigError

C = TypeVar("C")
V = TypeVar("V")


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
    if name not in table:
        raise ConfigError(f"no {what} {name!r}; {near(name, table)}")
    return table[name]


def near(name: str, known: Iterable[str]) -> str:
    """A clause for an error message: the near names, and all of them where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
