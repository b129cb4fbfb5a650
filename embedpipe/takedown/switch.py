"""Replace shards by what is left of them: written in full beside the output first, then put in place at once.

    OUT/.takedown/…                  the new files, under the names that they get
    OUT/.takedown/manifest/00003.json   their manifest, written last: from then on the change is carried out

While files take each other's place, the shard has no manifest: for that moment it does not exist for a reader, as one
that is not written yet. A reader that opened it before keeps what it opened (on a local disk).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from .. import files, manifest
from ..manifest import ShardManifest
from ..store import layout
from ..taken_down import STAGING
from ..verify.listing import shard_paths
from .outputs import Output


def staging(output: Output) -> str:
    """The folder where new files are written."""
    return files.join(output.path, STAGING)


def announce(output: Output, numbers: Iterable[int]) -> None:
    """Mark shards as pending, so that the moment without a manifest is no loss."""
    run = manifest.with_pending(output.path, output.run)
    output.run = dataclasses.replace(run, pending=tuple(sorted({*(run.pending or ()), *numbers})))
    manifest.write_run(output.path, output.run)


def stage(output: Output, entry: ShardManifest) -> None:
    """Decide the change of a shard, whose new files are written."""
    manifest.commit(staging(output), entry, output.run.shard_digits)


def finish_staged(output: Output) -> None:
    """Put in place what an interrupted takedown was about to.

    Where a shard has a manifest, what was staged for it is dropped: it is in place already, or will be written again.
    The same if its files are not all there, as when another program wrote over them: the shard is missing then, until
    it is made again.
    """
    place, digits = staging(output), output.run.shard_digits
    committed = set(manifest.committed_numbers(output.path))
    for number in manifest.committed_numbers(place):
        if number in committed:
            manifest.retract(place, number, digits)
        elif not _is_whole(output, manifest.read_manifest(place, number, digits)):
            for path in sorted(shard_paths(output.run, number)):
                files.remove(files.join(output.path, path))
            manifest.retract(place, number, digits)
    carry_out(output)


def _is_whole(output: Output, entry: ShardManifest) -> bool:
    """Whether each file of a staged shard is where one belongs, or already in place, as it was written."""
    for record in entry.files:
        if record.path not in shard_paths(output.run, entry.number):
            return False
        staged, final = files.join(staging(output), record.path), files.join(output.path, record.path)
        found = staged if files.exists(staged) else final
        if not files.has_size(found, record.bytes) or files.sha256(found) != record.sha256:
            return False
    return True


def carry_out(output: Output) -> None:
    """Put every staged shard in place; what was not staged to its end is removed."""
    place, digits = staging(output), output.run.shard_digits
    for number in manifest.committed_numbers(place):
        entry = manifest.read_manifest(place, number, digits)
        manifest.retract(output.path, number, digits)
        kept = {record.path for record in entry.files}
        if not output.images:
            for path in layout.data_paths(number, digits):
                if path not in kept:
                    files.remove(files.join(output.path, path))
        for path in sorted(kept):
            if files.exists(files.join(place, path)):  # else an interrupted run had moved it already
                files.move(files.join(place, path), files.join(output.path, path))
        manifest.commit(output.path, entry, digits)
        manifest.retract(place, number, digits)
    files.remove_folder(place)
