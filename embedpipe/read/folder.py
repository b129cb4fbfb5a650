"""Samples from a folder of loose images, with captions (.txt) and metadata (.json) beside them, at any depth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec

from .. import files
from ..errors import EmptyInput, InputError
from ..types import Reject, Sample, SourceShard
from .base import Digest
from .grouping import IMAGE_EXTENSIONS, SampleRules, Split, readable, samples, split_at_last_dot, wanted

_RUN_FILE = "embedpipe.json"


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads the loose files below `data`, divided into numbered shards of `samples_per_shard` keys in path order."""

    data: str
    rules: SampleRules
    samples_per_shard: int = 10_000

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """The current state of known shards (files with a known key belong to its shard), then new shards."""
        stats = self._list()
        by_key: dict[str, list[str]] = {}
        for path in sorted(stats, key=lambda p: (_key(p), p)):
            by_key.setdefault(_key(path), []).append(path)
        if not by_key:
            wanted_files = ("images", IMAGE_EXTENSIONS) if self.rules.need_image else ("captions", ("txt", "json"))
            raise EmptyInput(f"{self.data}: no {wanted_files[0]} in it", f"Looked for {', '.join(wanted_files[1])}")

        home = {key: shard.name for shard in known for key in map(_key, shard.members)}
        cuts: dict[str, list[str]] = {}
        fresh = [key for key in by_key if key not in home]
        for key in by_key:
            if key in home:
                cuts.setdefault(home[key], []).extend(by_key[key])
        for start in range(0, len(fresh), self.samples_per_shard):
            name = f"part-{len(known) + start // self.samples_per_shard:05d}"
            cuts[name] = [path for key in fresh[start : start + self.samples_per_shard] for path in by_key[key]]
        return [_shard(name, paths, stats) for name, paths in cuts.items()]

    def _list(self) -> dict[str, files.FileStat]:
        if not files.is_folder(self.data):
            raise InputError(f"{self.data}: no such folder", "Check the path")
        fs, root = fsspec.core.url_to_fs(self.data)
        found = {}
        for path, info in files.ask(self.data, lambda: fs.find(root, detail=True)).items():
            relative = str(path)[len(root.rstrip("/")) + 1 :]
            if wanted(relative, split_at_last_dot):
                mark = info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("LastModified") or ""
                found[relative] = files.FileStat(int(info["size"]), str(mark))
        # Exclude embedpipe's own outputs below the input (`encode photos photos/emb`).
        ours = tuple(path.removesuffix(_RUN_FILE) for path in found if path.endswith(f"/{_RUN_FILE}"))
        return {path: stat for path, stat in found.items() if not path.startswith(ours)} if ours else found

    def read(self, shard: SourceShard, digest: Digest) -> Iterator[Sample | Reject]:
        """The samples of one shard, from its files."""
        return samples(_LooseMembers(self.data, shard, digest), self.rules)


class _LooseMembers:
    """The files of one shard, in order. Loose files are never torn: a missing one raises InputError."""

    def __init__(self, folder: str, shard: SourceShard, digest: Digest) -> None:
        self._folder = folder
        self._shard = shard
        self._digest = digest
        self.torn: str | None = None
        self.split: Split = split_at_last_dot

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        for path in self._shard.members:
            data = files.read_bytes(files.join(self._folder, path))
            self._digest.update(f"{path}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
            self._digest.update(data)
            yield path, data if readable(path, len(data)) else None


def _key(path: str) -> str:
    place = split_at_last_dot(path)
    assert place is not None, f"{path} was listed and belongs to no sample"
    return place[0]


def _shard(name: str, paths: list[str], stats: dict[str, files.FileStat]) -> SourceShard:
    marks = hashlib.sha256()
    for path in paths:
        marks.update(f"{path}\0{stats[path].bytes}\0{stats[path].modified}\0".encode("utf-8", "surrogateescape"))
    total = sum(stats[path].bytes for path in paths)
    return SourceShard(name, total, marks.hexdigest(), tuple(paths))
