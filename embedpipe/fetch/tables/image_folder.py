"""A folder of images, with captions (.txt) and fields (.json) beside them, as rows. Files are grouped as in `read`."""

from __future__ import annotations

import contextlib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

import pyarrow as pa

from ... import files
from ... import shard_plan as growth
from ...accounts import Accounts, Ledger
from ...columns import storable
from ...errors import InputError, RunMismatch
from ...manifest import RunCard
from ...read import listing
from ...read.folder import FolderReader, NamedMembers, Siblings, read_loose
from ...read.grouping import samples
from ...read.names import FIRST_READING, IMAGE, METADATA, READING, Naming, printable
from ...read.sample import Member, SampleRules, first_caption, shown
from ...types import Reject, Sample, SourceShard
from .schema import REFUSED_CLASS, REFUSED_MESSAGE, Layout

# .txt and .json may be captions, so they are ignored here.
_SURE_TABLES = ("parquet", "csv", "tsv", "jsonl")
_SAMPLES_TO_LOOK_AT = 256
LAYOUT = Layout(
    "url", "caption", pa.schema([("url", pa.string()), ("caption", pa.string()), ("metadata", pa.string())])
)


def reading_of(previous: RunCard | None) -> int:
    """The version of the rules for names: that of the run so far, or the newest."""
    return READING if previous is None else int(previous.options.get("reading", FIRST_READING))


def rules_of(run: RunCard | None) -> SampleRules:
    """How files become samples, in a run so far or in a new one."""
    key = None if run is None else run.options.get("caption_key")
    return SampleRules(caption_key=key, need_caption=False, reading=reading_of(run))


def holds_images(location: str) -> bool:
    """Whether `location` is a folder of images, not of url tables. Raises InputError if ambiguous."""
    if not files.is_folder(location):
        return False
    names = [name.lower().removesuffix(".gz") for name in files.names(location) if name[0] not in "._"]
    tables = [name for name in names if name.endswith(tuple(f".{ending}" for ending in _SURE_TABLES))]
    naming = Naming(first_dot=False)
    if tables and any(naming(name).kind == IMAGE for name in names):
        raise InputError(
            f"{location}: contains both images and {tables[0]}",
            "Give `source='images'` or `source='table'`",
        )
    return not tables and listing.any_image_below(location, naming)


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """The shards of a folder, and what became of its files."""

    shards: list[SourceShard]
    accounts: Accounts | None


def plan_folder(location: str, out: str, samples_per_shard: int, previous: RunCard | None) -> FolderPlan:
    """The shards of a folder: those of the run so far, followed by new shards for new files.

    Raises RunMismatch if files of planned shards are changed or missing.
    """
    known = [shard for shard in previous.plan if shard.members] if previous is not None else []
    survey = FolderReader(location, rules_of(previous), samples_per_shard).survey(known)
    change = growth.grow_plan(known, survey.shards)
    for number in (*change.changed, *change.vanished):
        first, last = (printable(known[number].members[end]) for end in (0, -1))
        raise RunMismatch(
            f"{out}: {location} changed since the run began: among the files from {first} to {last}, some are new,"
            " gone or of another date or size",
            "Put new images (with new names) beside the old ones, give another output folder, or `overwrite=True`",
        )
    return FolderPlan(list(change.shards), survey.accounts)


def row_count(shard: SourceShard, reading: int) -> int:
    """The number of rows in a shard of a folder: one per key."""
    naming = Naming(first_dot=False, reading=reading)
    return sum(1 for _ in groupby(shard.members, lambda path: naming(path).key))


def require_captions(location: str, shards: Sequence[SourceShard], rules: SampleRules) -> None:
    """Raise InputError if a field is named for captions that none of the first .json files has."""
    if rules.caption_key is None:
        return
    naming = Naming(first_dot=False, reading=rules.reading)
    names = (naming(path) for shard in shards for path in shard.members)
    members = (Member(name) for name in names if name.kind == METADATA)
    fields: dict[str, None] = {}
    for member in islice(members, _SAMPLES_TO_LOOK_AT):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(read_loose(location, member, rules) or "")
            if isinstance(found, dict) and first_caption(found.get(rules.caption_key)) is not None:
                return
            fields |= dict.fromkeys(found if isinstance(found, dict) else ())
    there = f"their fields are {shown(list(fields))}" if fields else "there is none"
    raise InputError(
        f"{location}: no caption in the field {rules.caption_key!r} of the .json files; {there}",
        "Choose with `caption_col`, or drop it",
    )


def accounts_of(shard: SourceShard, rules: SampleRules) -> Accounts:
    """What became of the files of a shard of a folder."""
    ledger = Ledger(FolderReader.unit)
    FolderReader("", rules).count(shard, ledger)
    return ledger.closed()


class _Beside(NamedMembers):
    """The files of one sample. For an image, the path instead of the bytes, which the workers read."""

    def __init__(self, folder: str, naming: Naming, paths: Sequence[str], siblings: Siblings) -> None:
        super().__init__(naming, paths, Ledger(FolderReader.unit))
        self._folder = folder
        self._siblings = siblings

    def read(self, member: Member) -> Member:
        path = member.name.path
        if member.name.kind == IMAGE:
            return replace(member, data=path.encode("utf-8", "surrogateescape"))
        data = read_loose(self._folder, member, SampleRules())
        return replace(member, problem=data) if isinstance(data, str) else replace(member, data=data)

    def beside(self, key: str) -> Sequence[str]:
        return self._siblings(key)


def folder_rows(location: str, shard: SourceShard, rules: SampleRules) -> pa.Table:
    """The rows of a shard: relative paths as urls, and a refusal if the caption or the fields are damaged."""
    schema = LAYOUT.for_folder().schema
    naming = Naming(first_dot=False, reading=rules.reading)
    siblings = Siblings(location, naming)
    grouped = groupby(shard.members, lambda path: naming(path).key)
    beside = (_Beside(location, naming, list(paths), siblings) for _, paths in grouped)
    return pa.Table.from_pylist([_row(one, rules) for one in beside], schema=schema)


def _row(beside: _Beside, rules: SampleRules) -> dict[str, str | None]:
    members = list(beside)
    image = next((member.name.path for member in members if member.name.kind == IMAGE), None)
    captioned = (
        rules.txt_counts and image is not None and any(member.name.path.lower().endswith(".txt") for member in members)
    )
    sample = _first(beside, replace(rules, need_caption=captioned))
    if not isinstance(sample, Sample) and sample.error_class == "caption_missing":
        sample = _first(beside, rules)  # an empty .txt means no caption, and is not an error
    if not isinstance(sample, Sample):
        url = printable(image if image is not None else members[0].name.path)
        refused = "no_image" if sample.error_class == "image_missing" else "sidecar"
        return {"url": url, REFUSED_CLASS: refused, REFUSED_MESSAGE: f"{posixpath.basename(url)}: {sample.message}"}
    assert sample.image is not None
    caption = sample.caption
    if caption is None and (text := first_caption(sample.metadata.get(rules.caption_field))) is not None:
        caption = storable(text)
    fields = json.dumps(sample.metadata, sort_keys=True) if sample.metadata else None
    url = printable(sample.image.decode("utf-8", "surrogateescape"))
    return {"url": url, "caption": caption, "metadata": fields}


def _first(beside: _Beside, rules: SampleRules) -> Sample | Reject:
    return next(samples(beside, rules, Ledger(FolderReader.unit)))
