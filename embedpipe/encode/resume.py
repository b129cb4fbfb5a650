"""Totals over the shards that earlier runs committed: in a stream, as there may be millions of manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .. import files, manifest
from ..errors import RunMismatch
from ..manifest import RunCard, ShardManifest
from ..progress import CutCaptions, add_counts


@dataclass(slots=True)
class CommittedTotals:
    """numbers: committed shards. rows, rejected, rejects, cut: their totals. redone: names of shards whose files do not
    match their manifests; these are no longer committed.
    """

    numbers: set[int] = field(default_factory=set)
    rows: int = 0
    rejected: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    cut: CutCaptions = field(default_factory=CutCaptions)
    redone: list[str] = field(default_factory=list)

    def add(self, entry: ShardManifest) -> None:
        """Count a shard."""
        self.numbers.add(entry.number)
        self.rows += entry.rows_out
        self.rejected += entry.rows_rejected
        self.cut += entry.cut()
        if entry.rejects:
            self.rejects = add_counts(self.rejects, entry.rejects)


def scan_committed(
    out: str, run: RunCard, vanished: Iterable[int], holds: Callable[[int], bool], retract: bool = True
) -> CommittedTotals:
    """The committed shards among those whose numbers `holds`; a damaged one is retracted, to be encoded again.

    retract: False to leave it, and only report it as redone.

    Only sizes are compared; `embedpipe verify` checks checksums, since a restart should not read the whole data set.
    """
    found = CommittedTotals()
    gone = set(vanished)
    assert run.encoder is not None
    fingerprint = run.encoder.fingerprint()
    for entry, whole in _with_files(out, filter(holds, manifest.committed_numbers(out)), run.shard_digits):
        if entry.fingerprint != fingerprint:
            raise RunMismatch(
                f"{out}: shard {entry.number} was made by another encoder than embedpipe.json says",
                "Run `embedpipe verify`",
            )
        # A damaged shard whose input is gone is kept; `embedpipe verify` reports it.
        if whole or entry.number in gone:
            found.add(entry)
        else:
            if retract:
                manifest.retract(out, entry.number, run.shard_digits)
            found.redone.append(entry.source.name)
    return found


def _with_files(out: str, numbers: Iterable[int], digits: int) -> Iterator[tuple[ShardManifest, bool]]:
    """Manifests, and whether all files of each exist with the recorded sizes."""
    sizes: dict[str, dict[str, int]] = {}
    for entry in manifest.read_manifests(out, digits, numbers):
        if files.is_local(out):
            yield entry, manifest.files_are_there(out, entry)
            continue
        # For a remote output, list each folder once instead of a request per file.
        whole = True
        for record in entry.files:
            folder, _, name = record.path.rpartition("/")
            if folder not in sizes:
                sizes[folder] = files.sizes(files.join(out, folder))
            whole = whole and sizes[folder].get(name) == record.bytes
        yield entry, whole
