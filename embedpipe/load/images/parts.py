"""The image shards of one data set in several places, read as one: of merged data sets, or of a divided folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ... import files
from ...accounts import Ledger
from ...errors import InputError
from ...manifest import RunCard
from ...read import Reader
from ...read.base import Counting, Digest, NoDigest, Selective, Survey
from ...types import Reject, Sample, SourceShard


@dataclass(frozen=True, slots=True)
class SourcePart:
    """Some input shards of a data set, as one `encode` read them.

    prefix: of their names in the data set. source: where they were; empty if unknown. options: how they were read.
    """

    prefix: str
    source: str
    options: Mapping[str, object]

    def own_names(self, plan: Sequence[SourceShard]) -> list[SourceShard]:
        """The shards of `plan` that may be this part's, named as in its source."""
        cut = len(self.prefix)
        return [replace(shard, name=shard.name[cut:]) for shard in plan if shard.name.startswith(self.prefix)]


def parts_of(run: RunCard) -> tuple[SourcePart, ...]:
    """The data sets that were merged into this one, at any depth; the data set itself if there are none."""
    return tuple(_leaves(run, "")) if run.merged else (SourcePart("", run.source, run.options),)


def _leaves(merged: RunCard | object, prefix: str) -> Iterator[SourcePart]:
    for part in getattr(merged, "merged", ()):
        inside = prefix + part.prefix
        if part.merged:
            yield from _leaves(part, inside)
        else:
            yield SourcePart(inside, part.source, part.options)


def original_name(run: RunCard, name: str) -> str:
    """What an input shard was called before data sets were merged: `name` without the prefix of its part."""
    prefixes = (part.prefix for part in parts_of(run) if part.prefix and name.startswith(part.prefix))
    return name[len(max(prefixes, key=len, default="")) :]


@dataclass(frozen=True, slots=True)
class PartPlace:
    """Where shards of a part may be. number, turn: of the place among those given, and of the part among the parts."""

    part: SourcePart
    reader: Reader
    location: str
    number: int = 0
    turn: int = 0


@dataclass(frozen=True, slots=True)
class HeldShard:
    """A shard in a place, under its name there."""

    place: PartPlace
    shard: SourceShard


@dataclass(frozen=True, slots=True)
class PartsReader:
    """Reads the planned shards of a data set from where each of them is. held: by their names in the data set."""

    held: Mapping[str, HeldShard] = field(repr=False)

    @property
    def unit(self) -> str:
        """See `Reader`."""
        units = {reader.unit for reader in self.readers()}
        return units.pop() if len(units) == 1 else "item"

    def survey(self, known: Sequence[SourceShard]) -> Survey:
        """See `Reader`."""
        return Survey(self.shards(known), None)

    def shards(self, known: Sequence[SourceShard]) -> list[SourceShard]:
        """See `Reader`: the planned shards that are there."""
        return [replace(held.shard, name=name) for name, held in self.held.items()]

    def read(self, shard: SourceShard, digest: Digest, ledger: Ledger | None = None) -> Iterator[Sample | Reject]:
        """See `Reader`."""
        held = self._of(shard.name)
        yield from held.place.reader.read(replace(shard, name=held.shard.name), digest, ledger)

    def count(self, shard: SourceShard, ledger: Ledger) -> None:
        """See `Counting`; a source that cannot only count is read."""
        held = self._of(shard.name)
        reader, inside = held.place.reader, replace(shard, name=held.shard.name)
        if isinstance(reader, Counting):
            reader.count(inside, ledger)
        else:
            deque(reader.read(inside, NoDigest(), ledger), maxlen=0)

    def read_some(self, shard: SourceShard, keys: Container[str]) -> Iterator[Sample | Reject]:
        """See `Selective`; a source that cannot skip is read whole."""
        held = self._of(shard.name)
        reader, inside = held.place.reader, replace(shard, name=held.shard.name)
        yield from reader.read_some(inside, keys) if isinstance(reader, Selective) else reader.read(inside, NoDigest())

    def _of(self, name: str) -> HeldShard:
        if name not in self.held:
            raise InputError(f"{name}: in none of {', '.join(self.locations())}", "Give the folder with `images`")
        return self.held[name]

    def readers(self) -> list[Reader]:
        """The readers of the sources that hold shards."""
        return [held.place.reader for held in self.held.values()]

    def locations(self) -> list[str]:
        """Where shards were found, in order."""
        return list(dict.fromkeys(held.place.location for held in self.held.values()))


@dataclass(frozen=True, slots=True)
class _Listing:
    """The shards of a part in a place, under their names there; how many have the planned size, and are unchanged."""

    place: PartPlace
    there: dict[str, SourceShard]
    same: int
    unchanged: int

    def score(self) -> tuple[int, int, bool, bool, int]:
        """How well the place fits the part; of equals the part that has lost its own place, then in the given order."""
        source = self.place.part.source
        lost = not source or (files.is_local(source) and not files.exists(source))
        return self.same, self.unchanged, lost, self.place.turn == self.place.number, -self.place.turn


def _listing(plan: Sequence[SourceShard], place: PartPlace) -> _Listing:
    planned = {shard.name: shard for shard in place.part.own_names(plan)}
    there = {shard.name: shard for shard in place.reader.shards(tuple(planned.values())) if shard.name in planned}
    same = [shard for shard in there.values() if shard.bytes == planned[shard.name].bytes]
    unchanged = sum(shard.modified == planned[shard.name].modified for shard in same)
    return _Listing(place, there, len(same), unchanged)


def locate_shards(
    plan: Sequence[SourceShard], given: Sequence[PartPlace], recorded: Iterable[PartPlace]
) -> dict[str, HeldShard]:
    """Each planned shard where it is, in the order of the plan: in a given place, else where it was.

    given: each place for each part. recorded: is not looked at if all is found. A given place whose shards may be those
    of several parts, which call them the same, is that of the part it fits best.
    """
    held: dict[str, HeldShard] = {}
    planned = {shard.name: shard for shard in plan}

    def take(listing: _Listing) -> None:
        for own, shard in listing.there.items():
            name = listing.place.part.prefix + own
            if name not in held or (held[name].shard.bytes != planned[name].bytes == shard.bytes):
                held[name] = HeldShard(listing.place, shard)

    by_place: dict[int, list[_Listing]] = {}
    for place in given:
        by_place.setdefault(place.number, []).append(_listing(plan, place))
    for listings in by_place.values():
        own = [name for listing in listings for name in listing.there]
        for listing in listings if len(set(own)) == len(own) else [max(listings, key=_Listing.score)]:
            take(listing)
    if any(name not in held or held[name].shard.bytes != shard.bytes for name, shard in planned.items()):
        for place in recorded:
            take(_listing(plan, place))
    return {name: held[name] for name in planned if name in held}
