"""The configuration and the report of a takedown."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError


@dataclass(frozen=True, slots=True)
class TakedownConfig:
    """The options of `takedown`, exactly one of them given.

    urls: a file of urls, one a line, or parquet with a column `url`. keys: a file of keys, one a line, or parquet with
    a column `key` and, where keys repeat between input shards, `src_shard`.
    """

    urls: str | None = None
    keys: str | None = None

    def __post_init__(self) -> None:
        if (self.urls is None) == (self.keys is None):
            raise OptionError("what is to go is named either by `urls` or by `keys`", "Give one of them, a file")


@dataclass(frozen=True, slots=True)
class TakenFrom:
    """What goes, or went, from one output. rows: including rejects; shards: how many are written anew.

    record: the list of what went, as digests; None where nothing does.
    """

    path: str
    holds: str
    rows: int
    shards: int
    record: str | None


@dataclass(frozen=True, slots=True)
class TakedownReport:
    """The result of a takedown.

    asked: urls or keys in the file. copies: rows that were not named, but have the same url or bytes as one that is.
    not_found: what is nowhere in the outputs and was never taken out of them, as it was given. files_searched,
    bytes_searched: of the search at the end for what went; in a plan 0.
    """

    asked: int
    rows: int
    copies: int
    outputs: tuple[TakenFrom, ...]
    not_found: tuple[str, ...]
    files_searched: int = 0
    bytes_searched: int = 0
