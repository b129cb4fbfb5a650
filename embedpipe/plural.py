"""Counts with singular or plural nouns."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """`1 shard`, `1,914 shards`: an English noun whose plural takes an s, after its number."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def in_full(values: Sequence[float]) -> str:
    """Numbers as they can be typed again, with commas between: rounded ones would name another model."""
    return ",".join(repr(float(value)).removesuffix(".0") for value in values)
