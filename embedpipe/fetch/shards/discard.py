"""Overwrite an output: remove the files that `fetch` wrote, and only those."""

from __future__ import annotations

import dataclasses
import re

from ... import files, manifest
from ...manifest import RunCard
from ..report import REPORTS
from ..tables.recorded import RETRIES

HIDDEN = ".fetch"
_NUMBERED = re.compile(r"\d+")
_KEPT = re.compile(r"repeats-[0-9a-f]+\.npy|contents\.sqlite.*|download\.log")


def discard_shards(out: str, run: RunCard) -> None:
    """Remove the shards that `run` describes, with their retries and reports. Call it with `out` locked.

    Manifests go first, the files of shards next, then the run card: killed at any moment, it leaves an unfinished
    output, which its own command resumes, or none. Foreign files and the records of takedowns are not touched.
    """
    numbers = manifest.committed_numbers(out)
    ours = {manifest.shard_name(number, run.shard_digits) for number in (*range(len(run.plan)), *numbers)}
    manifest.write_run(out, dataclasses.replace(run, pending=tuple(range(len(run.plan)))))
    for number in numbers:
        manifest.retract(out, number, run.shard_digits)
    for name in files.names(out):
        stem, _, ending = name.partition(".")
        if stem in ours and ending in ("tar", "parquet"):
            files.remove(files.join(out, name))
    manifest.retract_run(out)
    for folder, ending in ((RETRIES, ".parquet"), (REPORTS, ".json")):
        for name in files.names(files.join(out, folder), ending):
            if _NUMBERED.fullmatch(name.removesuffix(ending)):
                files.remove(files.join(out, folder, name))
    for name in files.names(files.join(out, HIDDEN)):
        if _KEPT.fullmatch(name):
            files.remove(files.join(out, HIDDEN, name))
