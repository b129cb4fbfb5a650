"""The reader interface: list the shards, and read the samples of one."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol, runtime_checkable

from ..types import Reject, Sample, SourceShard


class Digest(Protocol):
    """The part of hashlib's objects a reader feeds."""

    def update(self, data: bytes, /) -> None: ...


class NoDigest:
    """Where nobody asks for the hash of a shard's bytes."""

    def update(self, data: bytes, /) -> None:
        """Nothing."""


class Reader(Protocol):
    """Samples from shards. A reader is a small picklable value: workers get a copy."""

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The shards there are now, as they are now: those of `known` under the same name, new ones besides.

        Raises InputError when the input is not there at all.
        """
        ...

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one shard in order, damaged ones as rejects.

        When the iterator is exhausted, `digest` has been fed every byte of the shard. Raises InputError when the shard
        is gone.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """A reader that can pass over the bytes of samples that nobody wants."""

    def read_some(self, shard: SourceShard, keys: Container[str]) -> Iterator[Sample | Reject]:
        """As `Reader.read`; samples without one of `keys`, which may change meanwhile, come as rejects.

        Samples are looked at a little before they are given.
        """
        ...
