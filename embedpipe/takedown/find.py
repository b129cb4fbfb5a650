"""Which rows go: those that are named, and those that are the same picture in any of the outputs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .. import files
from ..errors import InputError
from ..manifest import ShardManifest
from ..progress import Listener, Progress
from ..taken_down import RewrittenTar, TakedownRecord, key_digest, unfinished
from .outputs import IdentifiedRow, Output
from .request import TakedownRequest

Place = tuple[str, str]  # a folder of image shards, the name of a tar in it


@dataclass(slots=True)
class Wanted:
    """Digests of what goes. keys: by output; positions: of samples in tars."""

    urls: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    keys: dict[str, set[str]] = field(default_factory=dict)
    positions: dict[Place, set[int]] = field(default_factory=dict)

    def size(self) -> int:
        """How many digests there are: as long as it grows, another look may find more rows."""
        in_places = sum(map(len, self.keys.values())) + sum(map(len, self.positions.values()))
        return len(self.urls) + len(self.contents) + in_places


@dataclass(slots=True)
class TakedownRows:
    """The rows that go, by output and shard number. copies: how many of them were not named themselves."""

    rows: dict[str, dict[int, list[IdentifiedRow]]] = field(default_factory=dict)
    copies: int = 0

    def of(self, output: Output) -> dict[int, list[IdentifiedRow]]:
        """The rows that go from one output, by shard."""
        return self.rows.get(output.path, {})


def find_rows(outputs: Sequence[Output], request: TakedownRequest, listen: Listener) -> TakedownRows:
    """Look through the outputs until no row is found that is the same as one found before.

    A row with the url or the bytes of one that goes, goes as well: it is the same picture. Raises InputError if a key
    without its shard is in several.
    """
    wanted = _known(outputs, request)
    while True:
        before = wanted.size()
        found = TakedownRows()
        for output in outputs:
            found.rows[output.path] = _rows_of(output, request, wanted, found)
            listen(Progress())
        if wanted.size() == before:
            return found


def _known(outputs: Sequence[Output], request: TakedownRequest) -> Wanted:
    """What earlier takedowns of the named rows took, and all that an interrupted one was about to."""
    wanted = Wanted()
    for output in outputs:
        open_ones = {record.number for record in unfinished(output.records)}
        for record in output.records:
            for row in record.rows:
                named = request.named_once(row)
                if named:
                    request.met.add(str(row.url_sha256 if request.by_url else row.key_sha256))
                if named or record.number in open_ones:
                    wanted.urls.update(filter(None, [row.url_sha256]))
                    wanted.contents.update(filter(None, [row.sha256]))
                    wanted.keys.setdefault(output.path, set()).update(filter(None, [row.key_sha256]))
    return wanted


def _rows_of(
    output: Output, request: TakedownRequest, wanted: Wanted, found: TakedownRows
) -> dict[int, list[IdentifiedRow]]:
    taken: dict[int, list[IdentifiedRow]] = {}
    shards_of: dict[str, str] = {}
    keys = wanted.keys.setdefault(output.path, set())
    for entry in output.entries():
        for row, of_tar in _with_tars(output, entry, wanted):
            named = request.names(row.source, row.key, row.url)
            if row.gone:  # its key is all that is left of it
                request.met.update(filter(None, [named]))
                continue
            if named is None and not of_tar and not _is_wanted(row, wanted, keys):
                continue
            if named is not None:
                request.met.add(named)
                if request.any_shard and shards_of.setdefault(named, row.source) != row.source:
                    raise InputError(
                        f"{output.path}: the key {row.key} is in {shards_of[named]} and in {row.source}",
                        "Name the input shard, too: a parquet file with the columns src_shard and key",
                    )
            found.copies += named is None
            taken.setdefault(entry.number, []).append(row)
            _want(output, row, wanted)
    return taken


def _is_wanted(row: IdentifiedRow, wanted: Wanted, keys: set[str]) -> bool:
    url, key, content = row.digests()
    return (
        url in wanted.urls
        or content in wanted.contents
        or key in keys
        or not keys.isdisjoint(key_digest("", related) for related in row.relations)
    )


def _want(output: Output, row: IdentifiedRow, wanted: Wanted) -> None:
    url, key, content = row.digests()
    wanted.urls.update(filter(None, [url]))
    wanted.contents.update(filter(None, [content]))
    wanted.keys[output.path].update((key, key_digest("", row.key or "")) if output.images else (key,))
    if output.images and row.position is not None:
        place = (files.absolute(output.path).rstrip("/"), row.source)
        wanted.positions.setdefault(place, set()).add(row.position)


def _with_tars(output: Output, entry: ShardManifest, wanted: Wanted) -> Iterator[tuple[IdentifiedRow, bool]]:
    """The rows of a shard; of embeddings, whether the sample is gone, or goes, from the tar they were made from."""
    if output.images:
        yield from ((row, False) for row in output.rows(entry))
        return
    gone = lost_positions(output.tar_changes(entry))
    folder, name = output.source_folder(entry)
    goes = wanted.positions.get((folder, name), set())
    for row in output.rows(entry):
        at = row.position
        yield row, at is not None and (at in gone or (bool(goes) and at - bisect_left(gone, at) in goes))


def lost_positions(changes: Sequence[RewrittenTar]) -> list[int]:
    """The positions, in the tar before all of these changes, of the samples that it lost; ascending."""
    lost: list[int] = []
    for change in changes:
        before = list(lost)
        for position in change.removed:
            at = position
            for earlier in before:
                at += earlier <= at
            lost.append(at)
        lost.sort()
    return lost


def open_record(output: Output) -> TakedownRecord | None:
    """The takedown of an output that was interrupted."""
    return next(iter(unfinished(output.records)), None)
