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
from .outputs import Output

_FOLDER = ".takedown"


def staging(output: Output) -> str:
    """The folder where new files are written."""
    return files.join(output.path, _FOLDER)


def announce(output: Output, numbers: Iterable[int]) -> None:
    """Mark shards as pending, so that the moment without a manifest is no loss."""
    run = manifest.with_pending(output.path, output.run)
    output.run = dataclasses.replace(run, pending=tuple(sorted({*(run.pending or ()), *numbers})))
    manifest.write_run(output.path, output.run)


def stage(output: Output, entry: ShardManifest) -> None:
    """Decide the change of a shard, whose new files are written."""
    manifest.commit(staging(output), entry, output.run.shard_digits)


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
