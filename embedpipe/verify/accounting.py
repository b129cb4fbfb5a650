"""Verify the accounts of an input shard: that they add up, and that counting again gives the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import files
from ..accounts import Accounts, Ledger
from ..consent import gave_source
from ..errors import InputError
from ..load.images.source import open_recorded
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..read import FolderReader, SampleRules
from ..read.base import Counting
from ..read.names import FIRST_READING
from ..types import SourceShard


def account_faults(entry: ShardManifest) -> Iterator[str]:
    """Faults in the accounts of a shard by themselves, and against its rows."""
    accounts = entry.accounts
    if accounts is None:
        return
    yield from sum_fault(accounts)
    # The reject of a torn tar may have no member at all.
    samples = entry.rows_in - entry.rejects.get("shard_truncated", 0)
    if accounts.used < samples or (accounts.unit == "row" and accounts.used != entry.rows_in):
        yield f"{accounts.used} {accounts.unit}s used for {entry.rows_in} samples"


def sum_fault(accounts: Accounts) -> Iterator[str]:
    """That the accounts do not add up."""
    if not accounts.add_up:
        passed = sum(accounts.passed_over.values())
        yield f"{accounts.seen} {accounts.unit}s seen, {accounts.used} used and {passed} passed over do not add up"


@dataclass(frozen=True, slots=True)
class InputAgain:
    """The input of a data set, to be counted again. there: its shards as they are now, by name."""

    reader: Counting
    there: dict[str, SourceShard]


def input_again(run: RunCard) -> InputAgain | None:
    """The input, if it is still where this user encoded it from, on a local disk."""
    made_here = run.format == EMBEDDINGS and not run.merged and "selection" not in run.options
    if not made_here or not files.is_local(run.source) or not gave_source(run.source, run.plan):
        return None
    reader = open_recorded(run.source, run.options, asked_for=False)
    if not isinstance(reader, Counting) or isinstance(reader, FolderReader):  # a folder's names are in the plan
        return None
    return InputAgain(reader, {shard.name: shard for shard in reader.shards(run.plan)})


def count_faults(run: RunCard, entry: ShardManifest, again: InputAgain | None) -> Iterator[str]:
    """What differs if the input shard is counted again; nothing if it is gone, or changed since."""
    if entry.accounts is None:
        return
    reader: Counting
    if entry.source.members:
        reader = FolderReader("", SampleRules(reading=run.options.get("reading", FIRST_READING)))
    elif again is not None and again.there.get(entry.source.name) == entry.source:
        reader = again.reader
    else:
        return
    ledger = Ledger(entry.accounts.unit)
    try:
        reader.count(entry.source, ledger)
    except InputError:  # it vanished meanwhile
        return
    found = ledger.closed()
    if (found.seen, found.used, found.passed_over) != (
        entry.accounts.seen,
        entry.accounts.used,
        entry.accounts.passed_over,
    ):
        yield f"its input has {_summary(found)}, but the manifest says {_summary(entry.accounts)}"


def _summary(accounts: Accounts) -> str:
    passed = ", ".join(f"{count} {reason}" for reason, count in accounts.passed_over.items()) or "none"
    return f"{accounts.seen} {accounts.unit}s, {accounts.used} used, passed over {passed}"
