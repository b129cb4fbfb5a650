"""The stored pictures of some samples, found again in the shards they came from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

from ..errors import InputError
from ..types import Sample, SourceShard
from .base import Reader


def find_images(
    reader: Reader, plan: Iterable[SourceShard], wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], bytes]:
    """Encoded image bytes by (source shard, key), from the shards of `plan`; what is no longer there is left out."""
    keys_of: dict[str, set[str]] = {}
    for name, key in wanted:
        keys_of.setdefault(name, set()).add(key)
    found: dict[tuple[str, str], bytes] = {}
    for shard in plan:
        if shard.name in keys_of:
            with contextlib.suppress(InputError):  # the shard is gone
                found.update(_find_in(reader, shard, keys_of[shard.name]))
    return found


def _find_in(reader: Reader, shard: SourceShard, keys: set[str]) -> dict[tuple[str, str], bytes]:
    found: dict[tuple[str, str], bytes] = {}
    for sample in reader.read(shard, hashlib.sha256()):
        if isinstance(sample, Sample) and sample.key in keys and sample.image is not None:
            found[shard.name, sample.key] = sample.image
            if len(found) == len(keys):
                break
    return found
