"""The reader interface: list the shards, and read the samples of one."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..accounts import Accounts, Ledger
from ..types import Reject, Sample, SourceShard


class Digest(Protocol):
    """The part of hashlib's interface that readers use."""

    def update(self, data: bytes, /) -> None: ...


class NoDigest:
    """A no-op digest, for when no hash is needed."""

    def update(self, data: bytes, /) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What an input holds. accounts: of the files of its folder; None for one file, or a pattern."""

    shards: list[SourceShard]
    accounts: Accounts | None


class Reader(Protocol):
    """Reads samples from shards. A reader is a small picklable value: workers get a copy.

    unit: what a shard is made of, in the singular: member, file or row.
    """

    @property
    def unit(self) -> str: ...

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The current shards: those of `known` under the same name, plus new ones.

        Raises InputError if the input does not exist.
        """
        ...

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """The same shards, and the accounts of the input's files. Raises as `shards`."""
        ...

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """The samples of one shard in order, damaged ones as rejects.

        When the iterator is exhausted, `digest` has received every byte of the shard, and `ledger` has everything that
        is in it, used or passed over. Raises InputError if the shard is gone.
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


@runtime_checkable
class Counting(Protocol):
    """A reader that can take stock of a shard without reading the contents of its samples."""

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """Give `ledger` what `Reader.read` would. Raises InputError if the shard is gone."""
        ...
