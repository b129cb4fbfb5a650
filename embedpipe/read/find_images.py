"""Find the stored images of given samples in their source shards."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator

from ..errors import InputError
from ..types import Sample, SourceShard
from .base import Reader


def find_images(
    reader: Reader, plan: Iterable[SourceShard], wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], bytes]:
    """Encoded image bytes by (source shard, key), from the shards of `plan`; missing ones are left out."""
    keys_of: dict[str, set[str]] = {}
    for name, key in wanted:
        keys_of.setdefault(name, set()).add(key)
    found: dict[tuple[str, str], bytes] = {}
    for shard in plan:
        if shard.name in keys_of:
            with contextlib.suppress(InputError):  # the shard is gone
                for key, image in images_in(reader, shard, keys_of[shard.name]):
                    found[shard.name, key] = image
    return found


def images_in(reader: Reader, shard: SourceShard, keys: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(key, encoded image) for the samples of one shard with one of `keys`, each once, lazily.

    Raises InputError if the shard is gone.
    """
    left = set(keys)
    for sample in reader.read(shard, hashlib.sha256()) if left else ():
        if isinstance(sample, Sample) and sample.key in left and sample.image is not None:
            left.remove(sample.key)
            yield sample.key, sample.image
            if not left:
                return
