"""Counts with singular or plural nouns."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """`1 shard`, `1,914 shards`: a count and a regular English noun."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def in_full(values: Sequence[float]) -> str:
    """Numbers at full precision, separated by commas, to be typed again: rounded ones would mean another model."""
    return ",".join(repr(float(value)).removesuffix(".0") for value in values)
