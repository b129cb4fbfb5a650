"""Resolve repeated rows: reuse the result of a known url, or record a failure.

A row with a known url gets the image again, under its own key: with another caption it is another pair, and every shard
can be read on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.parquet

from ... import files, manifest
from ...taken_down import TakenDown
from .. import rights
from ..outcome import TAKEN_DOWN
from .seen import Place, StoredContents

_COPIED = (
    "error_class",
    "error_message",
    "content_type",
    "sha256",
    "bytes",
    "width",
    "height",
    "original_width",
    "original_height",
    "orientation",
    "offset",
    *rights.COLUMNS.names,
)

Outcomes = dict[int, dict[str, Any]]
NameKey = Callable[[int, int], str]


def answer_repeats(
    outcomes: Outcomes, shard: int, repeats: Mapping[int, Place], out: str, shard_digits: int, name_key: NameKey
) -> None:
    """Give each repeated row of `shard` the outcome of the first row with its url. Earlier shards are committed."""
    wanted: dict[int, list[int]] = {}
    for home, first in repeats.values():
        wanted.setdefault(home, []).append(first)
    known = {home: _earlier(out, home, rows, shard_digits) for home, rows in wanted.items() if home != shard}
    known[shard] = outcomes
    for row, (home, first) in repeats.items():
        if first in known[home]:  # else it is lost, and so is this one
            outcomes[row] = {**known[home][first], "attempts": 0, "duplicate_of": name_key(home, first)}


def _earlier(out: str, shard: int, rows: list[int], shard_digits: int) -> Outcomes:
    """Outcomes of some rows of a committed shard; their images are in its tar."""
    name = manifest.shard_name(shard, shard_digits)
    with files.reading(files.join(out, f"{name}.parquet")) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        table = file.read(columns=[name for name in _COPIED if name in file.schema_arrow.names])
    tar = files.join(out, f"{name}.tar")
    found = table.take(rows).to_pylist()
    return {row: {**outcome, "file": tar} for row, outcome in zip(rows, found, strict=True)}


def drop_taken(outcomes: Outcomes, taken: TakenDown) -> None:
    """Turn images with bytes that were taken out of the output into failures, whatever their url is now."""
    for row, outcome in outcomes.items():
        if outcome.get("sha256") in taken.contents:
            outcomes[row] = {
                "error_class": TAKEN_DOWN.error_class,
                "error_message": TAKEN_DOWN.message,
                "attempts": outcome["attempts"],
            }


def drop_stored(outcomes: Outcomes, shard: int, contents: StoredContents, name_key: NameKey) -> None:
    """Turn images with the bytes of an earlier row into failures; the first in row order is kept."""
    here: dict[str, int] = {}
    for row in sorted(outcomes):
        outcome = outcomes[row]
        sha256 = outcome.get("sha256")
        if sha256 is None:
            continue
        holder = contents.before(shard, sha256) or ((shard, here[sha256]) if sha256 in here else None)
        if holder is None:
            here[sha256] = row
            continue
        key = name_key(*holder)
        outcomes[row] = {
            "error_class": "duplicate",
            "error_message": f"the same bytes as {key}",
            "attempts": outcome["attempts"],
            "content_type": outcome["content_type"],
            "duplicate_of": outcome.get("duplicate_of") or key,
        }
