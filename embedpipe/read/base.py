"""The reader interface: list the shards, and read the samples of one."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol, runtime_checkable

from ..types import Reject, Sample, SourceShard


class Digest(Protocol):
    """The part of hashlib's interface that readers use."""

    def update(self, data: bytes, /) -> None: ...


class NoDigest:
    """A no-op digest, for when no hash is needed."""

    def update(self, data: bytes, /) -> None:
        """Nothing."""


class Reader(Protocol):
    """Reads samples from shards. A reader is a small picklable value: workers get a copy."""

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The current shards: those of `known` under the same name, plus new ones.

        Raises InputError if the input does not exist.
        """
        ...

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one shard in order, damaged ones as rejects.

        When the iterator is exhausted, `digest` has received every byte of the shard. Raises InputError if the shard is
        gone.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """A reader that can skip the bytes of unwanted samples."""

    def read_some(self, shard: SourceShard, keys: Container[str]) -> Iterator[Sample | Reject]:
        """As `Reader.read`; samples with keys outside `keys`, which may change meanwhile, are returned as rejects.

        Samples are inspected slightly ahead of being returned.
        """
        ...
