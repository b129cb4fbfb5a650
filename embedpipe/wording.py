"""How numbers of things are said."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 shard`, `1,914 shards`: an English noun whose plural takes an s, after its number."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
