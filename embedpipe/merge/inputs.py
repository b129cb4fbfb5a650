"""The data sets to merge: check their compatibility, list their shards, and unify their columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import files, manifest
from ..clip_model.compatibility import same_encoder
from ..clip_model.encoder_card import EncoderCard
from ..columns import join_kinds
from ..errors import DatasetError, InputError, RunMismatch
from ..folder_kind import require_embeddings
from ..manifest import EMBEDDINGS, MergedPart, RunCard, ShardManifest
from ..store import Contents
from ..types import SourceShard


@dataclass(frozen=True, slots=True)
class MergeInput:
    """One input data set: its run card, the manifests of its committed shards, and the prefix of their new names."""

    path: str
    run: RunCard
    manifests: tuple[ShardManifest, ...]
    prefix: str = ""

    def shards(self) -> Iterator[tuple[SourceShard, ShardManifest]]:
        """Each committed shard, named as in the plan of the merged data set."""
        for entry in self.manifests:
            yield replace(entry.source, name=self.prefix + entry.source.name), entry

    def record(self) -> MergedPart:
        """Its record in the merged data set's run card."""
        return MergedPart(self.path, self.prefix, self.run.source, self.run.options, self.run.merged)


def open_inputs(paths: Sequence[str], trust_old_card: bool = False) -> tuple[MergeInput, ...]:
    """Open the data sets at `paths`. Raises InputError, DatasetError, and RunMismatch if they cannot be merged."""
    paths = [files.absolute(path).rstrip("/") for path in paths]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: given twice", "Name each data set once")
    parts = [_open(path) for path in paths]
    for other in parts[1:]:
        _require_same(parts[0], other, trust_old_card)
    # Compare all pairs: two different ones may both match a third, older one that records less.
    for dated in (False, True):
        alike = [part for part in parts if part.run.encoder is not None and part.run.encoder.dated == dated]
        for other in alike[1:]:
            _require_same(alike[0], other, trust_old_card)
    return tuple(replace(part, prefix=prefix) for part, prefix in zip(parts, _prefixes(parts), strict=True))


def _open(path: str) -> MergeInput:
    require_embeddings(path)
    run = manifest.require_run(path, EMBEDDINGS)
    entries = tuple(manifest.read_manifests(path, run.shard_digits))
    lost = manifest.lost_numbers(run, (entry.number for entry in entries))
    if run.encoder is None or lost:
        raise DatasetError(f"{path}: is not whole", "Run `embedpipe verify` on it")
    for entry in entries:
        if entry.fingerprint != run.encoder.fingerprint() or run.plan[entry.number].name != entry.source.name:
            raise DatasetError(f"{path}: shard {entry.number} is not of this data set", "Run `embedpipe verify` on it")
    return MergeInput(path, run, entries)


def common_card(parts: Sequence[MergeInput]) -> EncoderCard:
    """The card of the first part, or of the first one written by version 0.1, if any, which records less."""
    cards = [part.run.encoder for part in parts if part.run.encoder is not None]
    return next((card for card in cards if card.dated), cards[0])


def _require_same(first: MergeInput, other: MergeInput, trust_old_card: bool) -> None:
    assert first.run.encoder is not None
    assert other.run.encoder is not None
    encoders = (first.path, first.run.encoder), (other.path, other.run.encoder)
    same = same_encoder(*encoders, trust_old_card=trust_old_card)
    for what, facts in (("encoder", _card_facts), ("set of options", _option_facts)):
        if same and facts is _card_facts:
            continue
        found = [
            f"{name} is {there}, not {here}"
            for name, here, there in manifest.run_differences(facts(first.run), facts(other.run))
        ]
        if found:
            raise RunMismatch(
                f"{other.path}: was made with another {what} than {first.path}: {'; '.join(found)}",
                "Only data sets of one encoder and one format can be merged: encode one of them again",
            )


def _card_facts(run: RunCard) -> dict[str, Any]:
    assert run.encoder is not None
    return run.encoder.facts()


def _option_facts(run: RunCard) -> dict[str, Any]:
    """The options that determine the files of a shard."""
    contents = Contents.of(run.options)
    return {
        "format": run.options.get("format", "npy"),
        "images": "image" in contents.modalities,
        "texts": "text" in contents.modalities,
        "text_tokens": contents.text_tokens,
        "token_width": run.token_width,
    }


def merged_options(part: MergeInput) -> dict[str, Any]:
    """The options of the merged data set: those that all parts share."""
    facts = _option_facts(part.run)
    del facts["token_width"]
    return facts if facts["text_tokens"] else {name: facts[name] for name in ("format", "images", "texts")}


def _prefixes(parts: Sequence[MergeInput]) -> list[str]:
    """Empty if all input shard names are unique; else as much of each path's end as distinguishes them.

    All planned shards are considered, even uncommitted ones: later additions must not change names.
    """
    names = [shard.name for part in parts for shard in part.run.plan]
    if len(set(names)) == len(names):
        return [""] * len(parts)
    pieces = [part.path.replace("://", "/").strip("/").split("/") for part in parts]
    for depth in range(1, max(map(len, pieces)) + 1):
        ends = ["/".join(each[-depth:]) for each in pieces]
        if len(set(ends)) == len(ends):
            return [f"{end}/" for end in ends]
    raise InputError("the data sets' paths do not tell them apart", "Give other paths")


def unified_columns(parts: Sequence[MergeInput]) -> dict[str, str]:
    """The passed-through columns of all parts, in the order they are first seen, each with a type that fits all values.

    Types mix as within one data set: see `columns.join_kinds`.
    """
    kinds: dict[str, set[str]] = {}
    for part in parts:
        for name, kind in part.run.columns.items():
            kinds.setdefault(name, set()).add(kind)
    return {name: join_kinds(found) for name, found in kinds.items()}


def changed_columns(parts: Sequence[MergeInput], columns: dict[str, str]) -> dict[str, str]:
    """What happens to columns that differ between parts, described by name."""
    told = {}
    for name, kind in columns.items():
        apart = [(part.path, part.run.columns.get(name)) for part in parts if part.run.columns.get(name) != kind]
        if apart:
            there = ", ".join(f"{found or 'absent'} in {path}" for path, found in apart)
            told[name] = f"{kind}; {there}" if any(found for _, found in apart) else there
    return told
