"""Samples from webdataset tars: one tar, a folder, a glob or a brace pattern, on any fsspec path."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from .. import files, manifest
from ..types import Reject, Sample, SourceShard
from . import places
from .base import Digest
from .grouping import SampleRules, Split, readable, samples, split_at_first_dot, wanted
from .tar import TarDamaged, regular_files

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class WebdatasetReader:
    """Reads `data`, a location or pattern. Shard names are paths below the part of `data` that holds no wildcard."""

    data: str
    rules: SampleRules

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The tars `data` names, sorted by name; in a folder written by `fetch`, the committed ones."""
        return places.as_shards(self.data, self._locations(), ".tar")

    def _locations(self) -> list[str]:
        if not places.is_pattern(self.data) and files.is_folder(self.data):
            run = manifest.read_run(self.data)
            if run is not None and run.format == manifest.IMAGE_SHARDS:
                numbers = manifest.committed_numbers(self.data)
                return [files.join(self.data, f"{manifest.shard_name(n, run.shard_digits)}.tar") for n in numbers]
        return places.locations(self.data, TAR_SUFFIXES)

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one tar. A tear ends it with a `shard_truncated` reject; what came before is kept."""
        with files.reading(files.join(places.root(self.data), shard.name)) as raw:
            yield from samples(_TarMembers(raw, digest), self.rules)


class _TarMembers:
    """The files of a tar, in order; damage ends them and is told in `torn`."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._stored = _HashedStream(raw, digest)
        self.torn: str | None = None
        self.split: Split = split_at_first_dot

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        packed = self._stored.peek(2) == _GZIP_MAGIC
        plain = gzip.GzipFile(fileobj=cast("IO[bytes]", self._stored)) if packed else self._stored
        try:
            yield from regular_files(plain, lambda path, size: wanted(path, self.split) and readable(path, size))
        except (TarDamaged, gzip.BadGzipFile, EOFError, zlib.error) as problem:
            self.torn = f"the tar is damaged: {problem or 'it ends early'}"
        self._stored.drain()


class _HashedStream:
    """The stored bytes of a shard; feeds all that is read to a digest."""

    def __init__(self, raw: BinaryIO, digest: Digest) -> None:
        self._raw = raw
        self._digest = digest
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, which the next `read` returns again."""
        self._ahead = self.read(size)
        return self._ahead

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; fewer only at the end, or after a `peek`."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        data = self._raw.read(size)
        self._digest.update(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest covers the whole file."""
        while self.read(1 << 20):
            pass
