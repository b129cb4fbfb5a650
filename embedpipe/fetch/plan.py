"""The fetch plan: which rows make up which shard, and whether an output may be resumed.

Each shard is cut from one file, in order. The plan is made once and only grows: files that appear later get the next
numbers, whatever their names; a changed or missing file is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import files, manifest
from ..accounts import Accounts, total
from ..errors import EmptyInput, InputError, OptionError, RunMismatch
from ..manifest import SAME_OR_ANEW, RunCard
from ..read import SampleRules
from ..read.names import FIRST_READING, printable
from ..read.tables import table
from ..read.tables.table_file import Surveyed, TableFile, TableOptions
from ..types import SourceShard
from . import rights
from .config import DEFAULT_URL_COLUMN, FetchConfig
from .tables import image_folder as folder
from .tables import sources
from .tables.layout import chosen_layout, continued_layout, infers_types, kept_options, widened_layout
from .tables.local_paths import refuse_local_paths
from .tables.recorded import TableInput, identify, recorded, require_unchanged, retry_file
from .tables.schema import Layout
from .tables.sources import Source

logger = logging.getLogger(__name__)

_SAME_URL = "the same request"


@dataclass(frozen=True, slots=True)
class ShardRange:
    """The rows of one planned shard: `rows` rows of `file`, starting at `first` (0-based).

    retry: 0 for the rows of a table, else the number of the round of retries.
    """

    number: int
    file: TableFile
    first: int
    rows: int
    source: SourceShard
    retry: int


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """All planned shards, and the layout of their rows. `previous` is the run card found in the output, if any.

    folder: the location of the images, if they come from a folder, else empty. root: the folder that a table's local
    paths must not lead out of; empty for urls.
    """

    run: RunCard
    previous: RunCard | None
    layout: Layout
    shards: tuple[ShardRange, ...]
    folder: str = ""
    root: str = ""

    @property
    def compares_requests(self) -> bool:
        """Whether two urls are the same if they lead to the same request; in earlier versions, letter by letter."""
        return self.run.options.get("same_url") == _SAME_URL

    @property
    def rights(self) -> str:
        """What becomes of the rights that files state; outputs begun before there was a choice leave them unread."""
        return str(self.run.options.get("rights", rights.OFF))

    @property
    def follows_links(self) -> bool:
        """Whether links out of `root` are followed: those of an image folder are, as of any folder of images."""
        return self.run.options.get("source") == sources.IMAGE_FOLDER

    @property
    def images(self) -> bool:
        """Whether the images come from a folder."""
        return bool(self.folder)

    @property
    def rules(self) -> SampleRules:
        """How the files of a folder become samples."""
        return folder.rules_of(self.run)

    def paths(self) -> dict[str, str]:
        """url → path, for those files of a folder whose names are not UTF-8."""
        members = (path for shard in self.shards for path in shard.source.members)
        return {url: path for path in members if (url := printable(path)) != path}

    @property
    def rows(self) -> int:
        """The total number of rows of all files."""
        return sum(shard.rows for shard in self.shards)

    def fingerprint(self) -> str:
        """Hex sha256 over everything that determines the url of each row."""
        facts: list[Any] = [self.layout.url, [[shard.source.name, shard.source.modified] for shard in self.shards]]
        if self.compares_requests:
            facts.append(_SAME_URL)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make_plan(urls: str, out: str, config: FetchConfig) -> FetchPlan:
    """The plan for `out`, grown from its existing one, if any. Reads the tables, writes nothing.

    Raises RunMismatch if `out` was made with other options, from other or changed files, or is something else.
    """
    found = previous_run(out)
    previous = None if config.overwrite else found
    config = replace(config, rights=_settled_rights(config, previous))
    before = None if previous is None else str(previous.options.get("source", "table"))
    source = sources.source_of(urls, config, before)
    if before is not None:
        manifest.refuse_difference(out, {"source": before}, {"source": source.kind}, "kind of source", SAME_OR_ANEW)
    if source.kind == sources.IMAGES:
        return _folder_plan(urls, out, config, previous)
    return _table_plan(source, out, config, previous)


def _settled_rights(config: FetchConfig, previous: RunCard | None) -> str:
    if config.rights is not None:
        return config.rights
    return rights.OBEY if previous is None else str(previous.options.get("rights", rights.OFF))


def _table_plan(source: Source, out: str, config: FetchConfig, previous: RunCard | None) -> FetchPlan:
    found = source.tables()
    config = source.with_known_columns(config, previous)
    before = recorded(previous)
    known = {entry.name: entry for entry in before if not entry.retry}
    require_unchanged(out, found, known, config.dialect)
    # Options first: a wrong one is reported without reading the table.
    base = None if previous is None else continued_layout(out, previous, config)
    fresh = [file for file in found if file.name not in known]
    reading = TableOptions(config.dialect, config.infer_types if previous is None else infers_types(previous))
    marks = {file.location: files.stat(file.location) for file in fresh}
    surveyed = {file.name: table.survey(file, reading) for file in fresh}
    filled = [file for file in fresh if surveyed[file.name].rows]
    if not filled and not any(entry.rows for entry in before):
        raise EmptyInput(f"{source.location}: no rows in it")
    if previous is None:
        config = source.with_columns(config, [surveyed[file.name].schema.names for file in filled])
    chosen = chosen_layout(filled, surveyed, config) if base is None else widened_layout(out, base, filled, surveyed)
    inputs = [*before, *(identify(file, surveyed[file.name].rows, surveyed[file.name].dialect) for file in fresh)]
    for location, mark in marks.items():
        if files.stat(location) != mark:  # else rows that came behind the survey would never be fetched
            raise InputError(f"{location}: changed while it was read", "Run the same command once it is written")
    dialects = {entry.name: entry.dialect for entry in inputs}
    by_name = {file.name: replace(file, dialect=dialects[file.name]) for file in found}
    by_name |= {entry.name: retry_file(out, entry.retry) for entry in before if entry.retry}
    shards = tuple(_ranges([(by_name[entry.name], entry) for entry in inputs], config.samples_per_shard))
    if previous is None and not source.root:
        refuse_local_paths(shards[0].file, chosen.url)
    run = _run_card(source.location, config, chosen, inputs, shards, previous)
    run = _with_notes(run, surveyed)
    plan = FetchPlan(run, previous, chosen, shards, root=source.root)
    return replace(plan, run=source.recorded_in(run, by_name.values(), chosen.url))


def _with_notes(run: RunCard, surveyed: Mapping[str, Surveyed]) -> RunCard:
    """The run card with the count of blank lines. Tables without rows are only said."""
    for name, found in surveyed.items():
        if not found.rows:
            logger.warning("%s: no rows in it", name)
    blank = sum(found.blank_lines for found in surveyed.values())
    if not blank:
        return run
    return replace(run, listing=total(run.listing, Accounts("line", blank, 0, {"blank_line": blank})))


def _folder_plan(location: str, out: str, config: FetchConfig, previous: RunCard | None) -> FetchPlan:
    if not files.is_folder(location):
        raise InputError(f"{location}: no such folder", "Check the path")
    if previous is not None:
        kept = kept_options(previous, config)
        of_tables = {name: kept.get(name) for name in ("url_col", "caption_col", "infer_types")}
        manifest.refuse_difference(out, kept, config.shaping() | of_tables, "set of options", SAME_OR_ANEW)
        named = {"caption_col": previous.options.get("caption_key")}
        manifest.refuse_difference(out, named, {"caption_col": config.caption_col}, "set of options", SAME_OR_ANEW)
    if config.url_col != DEFAULT_URL_COLUMN:
        raise OptionError("`url_col` is for a table, and the input is a folder of images", "Drop `url_col`")
    reading = folder.reading_of(previous)
    planned = folder.plan_folder(location, out, config.samples_per_shard, previous)
    of_folder = iter(planned.shards)
    entries = recorded(previous)
    rounds = [(retry_file(out, entry.retry), entry) for entry in entries]
    retries = {shard.source: shard for shard in _ranges(rounds, config.samples_per_shard)}
    shards: list[ShardRange] = []
    for source in () if previous is None else previous.plan:
        again = retries.get(source)
        number = len(shards)
        shards.append(replace(again, number=number) if again else _loose(location, number, next(of_folder), reading))
    for source in of_folder:
        shards.append(_loose(location, len(shards), source, reading))
    chosen = replace(folder.LAYOUT, with_rights=config.rights != rights.OFF)
    run = _run_card(location, config, chosen, entries, shards, previous)
    options = {**run.options, "source": "images"}
    # Absent in the output of older versions, which goes on under their rules.
    options |= {"reading": reading} if reading != FIRST_READING else {}
    options |= {"caption_key": config.caption_col} if config.caption_col is not None else {}
    run = replace(run, options=options, listing=planned.accounts)
    if previous is None:
        folder.require_captions(location, planned.shards, folder.rules_of(run))
    return FetchPlan(run, previous, chosen, tuple(shards), location)


def _loose(location: str, number: int, source: SourceShard, reading: int) -> ShardRange:
    file = TableFile(location, source.name, "folder")
    return ShardRange(number, file, 0, folder.row_count(source, reading), source, 0)


def with_retry(plan: FetchPlan, out: str, rows: int, config: FetchConfig) -> FetchPlan:
    """`plan`, grown by another round of retries with `rows` rows in its file."""
    entries = plan.run.options["inputs"]
    retry = 1 + max((entry.get("retry", 0) for entry in entries), default=0)
    file = retry_file(out, retry)
    size = files.stat(file.location).bytes
    entry = TableInput(file.name, size, rows, f"sha256:{files.sha256(file.location)}", "", retry)
    fresh = tuple(_ranges([(file, entry)], config.samples_per_shard, len(plan.shards)))
    run = replace(
        plan.run,
        options={**plan.run.options, "inputs": [*entries, dataclasses.asdict(entry)]},
        plan=(*plan.run.plan, *(shard.source for shard in fresh)),
    )
    return FetchPlan(run, plan.run, plan.layout, (*plan.shards, *fresh), plan.folder, plan.root)


def previous_run(out: str) -> RunCard | None:
    """The run card of an output; None where there is none yet. Raises RunMismatch if it is something else."""
    run = manifest.read_run(out)
    if run is None and files.names(out, ".tar"):
        raise RunMismatch(f"{out}: holds .tar files that fetch did not write", "Give another output folder")
    if run is not None and run.format != manifest.IMAGE_SHARDS:
        raise RunMismatch(f"{out}: holds {run.format}", "Give another output folder")
    return run


def _ranges(
    inputs: Sequence[tuple[TableFile, TableInput]], samples_per_shard: int, number: int = 0
) -> Iterator[ShardRange]:
    for file, entry in inputs:
        for first in range(0, entry.rows, samples_per_shard):
            rows = min(samples_per_shard, entry.rows - first)
            name = f"{entry.name}:{first}-{first + rows - 1}"
            yield ShardRange(number, file, first, rows, SourceShard(name, entry.bytes, entry.identity), entry.retry)
            number += 1


def _run_card(
    urls: str,
    config: FetchConfig,
    chosen: Layout,
    inputs: Sequence[TableInput],
    shards: Sequence[ShardRange],
    previous: RunCard | None,
) -> RunCard:
    options: dict[str, Any] = config.shaping()
    options["source"] = "table"
    options["caption_col"] = chosen.caption
    if previous is None or "same_url" in previous.options:
        options["same_url"] = _SAME_URL
    if previous is not None and "infer_types" not in previous.options:
        del options["infer_types"]  # it goes on as it began
    options["table_schema"] = chosen.packed_table()
    options["inputs"] = [dataclasses.asdict(entry) for entry in inputs]
    plan = tuple(shard.source for shard in shards)
    if previous is not None:
        return replace(previous, options=options, plan=plan)
    return RunCard(
        format=manifest.IMAGE_SHARDS,
        options=options,
        plan=plan,
        source=files.absolute(urls),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Versions of the installed packages that may affect the bytes."""
    found = {}
    for name in ("embedpipe", "img2dataset", "opencv-python-headless", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
