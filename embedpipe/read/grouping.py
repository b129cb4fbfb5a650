"""Group the members of a shard into samples: consecutive members of one key (webdataset's rule).

In a tar, members whose name has more than one dot are told apart by what stands between the dots:

- a piece of a file name (`0` of `IMG_1.0.jpg`, ` No` of `Dr. No.jpg`): the key ends at the last dot.
- a name (`seg` of `000.seg.png`): the member is a part of the sample `000`. It takes the place of an image or caption
  that the sample lacks; but a caption that pairs up with another image by its last dot is that image's. Without any
  member of a single dot, members that pair up so, or are all of one kind, are samples of their own; others are parts
  of one.

Nothing is left out silently: what belongs to no sample is passed over in the ledger, for a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from ..accounts import Ledger
from ..types import Reject, Sample
from .names import CAPTION, IMAGE, METADATA, printable
from .sample import Draft, Member, SampleRules, make_sample

# A key with more members, or larger ones, is decided by the first of them.
_MOST_MEMBERS = 64
_MOST_BYTES = 64 << 20
_MOST_REMEMBERED = 100_000
_BITS = {IMAGE: 1, CAPTION: 2, METADATA: 4}
_SORT = "the members of a sample must be next to one another: sort the tar by name"


class Members(Protocol):
    """The members of a shard that belong to a sample, in order; others are passed over in the reader's ledger.

    After iteration `torn` describes damage of the shard, or is None.
    """

    torn: str | None

    def __iter__(self) -> Iterator[Member]: ...

    def beside(self, key: str) -> Sequence[str]:
        """Names of other members with this key, which belong to no sample."""
        ...


def samples(members: Members, rules: SampleRules, ledger: Ledger) -> Iterator[Sample | Reject]:
    """Group members into samples, in order, each a Sample or a Reject with its reason.

    In a torn shard the sample at the tear is only kept if it has every kind of member of the previous one: half a
    sample could pass for a complete one. The tear itself is the last reject.
    """
    seen = _Seen()
    before: Draft | None = None
    at_tear: Draft | None = None
    for draft, last in _with_last(_drafts(members, ledger)):
        for member in draft.parts.values():
            ledger.use(printable(member.name.path))
        if last and members.torn and (before is None or before.parts.keys() - draft.parts.keys()):
            at_tear = draft
            break
        again = seen.again(draft)
        if again is not None:
            yield again
        else:
            draft.beside = members.beside(draft.key)
            draft.elsewhere = seen.elsewhere(draft)
            yield make_sample(draft, rules)
        before = draft
    if members.torn:
        key, index = (at_tear.key, at_tear.index) if at_tear else ("", before.index + 1 if before else 0)
        yield Reject(key, index, "read", "shard_truncated", members.torn)


class _Seen:
    """The keys so far, and what came of each."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._halves: dict[str, tuple[str, int]] = {}

    def again(self, draft: Draft) -> Reject | None:
        """The reject for a key that came before."""
        kinds = sum(_BITS[kind] for kind in draft.parts)
        earlier = self._kinds.get(draft.key)
        self._kinds[draft.key] = kinds | (earlier or 0)
        if earlier is None:
            return None
        if earlier & kinds:
            return Reject(draft.key, draft.index, "read", "duplicate_key", "a sample with this key came earlier")
        had = " and ".join(kind for kind, bit in _BITS.items() if earlier & bit)
        return Reject(
            draft.key, draft.index, "read", "members_apart", f"its {had} came earlier, apart from it: {_SORT}"
        )

    def elsewhere(self, draft: Draft) -> str:
        """Where the other half of a lone image or caption is, if it came earlier in another folder."""
        kinds = draft.parts.keys() & {IMAGE, CAPTION}
        if len(kinds) != 1:
            return ""
        base, mine = draft.key.rpartition("/")[2], _BITS[next(iter(kinds))]
        key, other = self._halves.get(base, ("", mine))
        if other != mine:
            return f"{key!r} has the other half: samples are paired by the whole path, and the folders differ"
        if len(self._halves) < _MOST_REMEMBERED:
            self._halves[base] = (draft.key, mine)
        return ""


def _with_last(drafts: Iterator[Draft]) -> Iterator[tuple[Draft, bool]]:
    """Each draft and whether it is the last one."""
    held = next(drafts, None)
    while held is not None:
        following = next(drafts, None)
        yield held, following is None
        held = following


def _drafts(members: Members, ledger: Ledger) -> Iterator[Draft]:
    index = 0
    for group in _groups(members):
        for key, mine in _told_apart(group, ledger):
            yield Draft(printable(key), index, mine)
            index += 1


def _groups(members: Members) -> Iterator[list[Member]]:
    """Consecutive members of one key. A second caption or .json of a single dot begins another group."""
    group: list[Member] = []
    held = 0
    for member in members:
        if group and (_repeats(member, group) or (_is_full(group, held) and not _pairs(member, group[-1]))):
            yield group
            group, held = [], 0
        group.append(member)
        held += member.size  # whether or not it was read, so that counting decides as reading does
    if group:
        yield group


def _repeats(member: Member, group: list[Member]) -> bool:
    name = member.name
    if name.key != group[0].name.key:
        return True
    if name.part or name.kind == IMAGE:
        return False
    return any(other.name.kind == name.kind and not other.name.part for other in group)


def _is_full(group: list[Member], held: int) -> bool:
    return len(group) >= _MOST_MEMBERS or held > _MOST_BYTES


def _pairs(member: Member, other: Member) -> bool:
    """Whether they belong together whatever else there is."""
    return not member.name.part or member.name.stem == other.name.stem


def _told_apart(group: list[Member], ledger: Ledger) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples of a group: (key, members by kind)."""
    plain = [member for member in group if not member.name.part]
    by_stem: dict[str, list[Member]] = {}
    for member in group:
        if member.name.part:
            by_stem.setdefault(member.name.stem, []).append(member)
    own = {stem: some for stem, some in by_stem.items() if _stands_alone(some, plain, by_stem)}
    mine = list(plain)
    for member in (member for stem, some in by_stem.items() if stem not in own for member in some):
        if plain and member.name.kind in _unneeded(_kinds(plain)):
            ledger.pass_over(printable(member.name.path), "unused_part")
        else:
            mine.append(member)
    if mine:
        yield mine[0].name.key, _chosen(mine, ledger)
    for stem, some in own.items():
        yield stem, _chosen(some, ledger)


def _stands_alone(some: list[Member], plain: list[Member], by_stem: dict[str, list[Member]]) -> bool:
    """Whether members of one stem, with several dots in their names, are a sample of their own."""
    kinds = _kinds(some)
    if not some[0].name.named_part:
        missing = (kinds - _kinds(plain)) & {IMAGE, CAPTION}
        return not plain or (IMAGE in kinds and len(kinds) > 1) or bool(missing)
    if plain:
        return _kinds(plain) == {IMAGE} and kinds >= {IMAGE, CAPTION}
    named = [others for others in by_stem.values() if others[0].name.named_part]
    return any(len(_kinds(others)) > 1 for others in named) or len({k for o in named for k in _kinds(o)}) == 1


def _unneeded(own: set[str | None]) -> set[str]:
    """The kinds that parts do not add to a sample with members `own`: a .json may hold its caption already."""
    return {METADATA, CAPTION} - own if METADATA in own else {METADATA} - own


def _kinds(some: list[Member]) -> set[str | None]:
    return {member.name.kind for member in some}


def _chosen(some: list[Member], ledger: Ledger) -> dict[str, Member]:
    """One member of each kind: the first of the lowest rank; the others are passed over."""
    found: dict[str, Member] = {}
    for member in sorted(some, key=lambda it: it.name.rank):
        assert member.name.kind is not None
        if member.name.kind in found:
            ledger.pass_over(printable(member.name.path), f"second_{member.name.kind}")
        else:
            found[member.name.kind] = member
    return found
