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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from .. import files, manifest
from ..errors import EmptyInput, InputError, RunMismatch
from ..manifest import RunCard
from ..read.names import FIRST_READING, printable
from ..types import SourceShard
from . import rights
from .config import DEFAULT_CAPTION_COLUMN, FetchConfig
from .tables import image_folder as folder
from .tables import schema as layout
from .tables import table
from .tables.schema import Layout
from .tables.table import TableFile
from .tables.type_inference import join_types


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

    folder: the location of the images, if they come from a folder, else empty.
    """

    run: RunCard
    previous: RunCard | None
    layout: Layout
    shards: tuple[ShardRange, ...]
    folder: str = ""

    @property
    def images(self) -> bool:
        """Whether the images come from a folder."""
        return bool(self.folder)

    @property
    def rights(self) -> str:
        """What becomes of the rights that files state; outputs begun before there was a choice leave them unread."""
        return str(self.run.options.get("rights", rights.OFF))

    @property
    def reading(self) -> int:
        """The version of the rules for names in a folder."""
        return folder.reading_of(self.run)

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
        facts = [self.layout.url, [[shard.source.name, shard.source.modified] for shard in self.shards]]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Input:
    """One file as recorded in the run card. `identity` is a sha256 or an object store's etag.

    retry: see `ShardRange`; the file is then one that embedpipe wrote to the output.
    """

    name: str
    bytes: int
    rows: int
    identity: str
    modified: str
    retry: int = 0


def make_plan(urls: str, out: str, config: FetchConfig) -> FetchPlan:
    """The plan for `out`, grown from its existing one, if any. Reads the tables, writes nothing.

    Raises RunMismatch if `out` was made with other options, from other or changed files, or is something else.
    """
    previous = _previous_run(out)
    config = replace(config, rights=_settled_rights(config, previous))
    images = config.source == "images" or (config.source == "auto" and folder.holds_images(urls))
    if previous is not None:
        before_kind = {"source": previous.options.get("source", "table")}
        manifest.refuse_difference(out, before_kind, {"source": "images" if images else "table"}, "kind of source")
    return _folder_plan(urls, out, config, previous) if images else _table_plan(urls, out, config, previous)


def _settled_rights(config: FetchConfig, previous: RunCard | None) -> str:
    if config.rights is not None:
        return config.rights
    return rights.OBEY if previous is None else str(previous.options.get("rights", rights.OFF))


def _kept_options(previous: RunCard, config: FetchConfig) -> dict[str, Any]:
    """The options of the run so far. One begun before files were read for their rights goes on without."""
    return {"rights": rights.OFF} | {
        name: previous.options[name] for name in config.shaping() if name in previous.options
    }


def _table_plan(urls: str, out: str, config: FetchConfig, previous: RunCard | None) -> FetchPlan:
    found = table.locate_tables(urls)
    before = [] if previous is None else [_Input(**entry) for entry in previous.options["inputs"]]
    known = {entry.name: entry for entry in before if not entry.retry}
    _require_unchanged(out, found, known)
    # Options first: a wrong one is reported without reading the table.
    base = None if previous is None else _continued_layout(out, previous, config)
    fresh = [file for file in found if file.name not in known]
    surveyed = {file.name: table.survey(file) for file in fresh}
    filled = [file for file in fresh if surveyed[file.name][0]]
    if not filled and not any(entry.rows for entry in before):
        raise EmptyInput(f"{urls}: no rows in it")
    chosen = _layout(filled, surveyed, config) if base is None else _widened(out, base, filled, surveyed)
    inputs = [*before, *(_identify(file, surveyed[file.name][0]) for file in fresh)]
    by_name = {file.name: file for file in found}
    by_name |= {entry.name: retry_file(out, entry.retry) for entry in before if entry.retry}
    shards = tuple(_ranges([(by_name[entry.name], entry) for entry in inputs], config.samples_per_shard))
    run = _run_card(urls, config, chosen, inputs, shards, previous)
    return FetchPlan(run, previous, chosen, shards)


def _folder_plan(location: str, out: str, config: FetchConfig, previous: RunCard | None) -> FetchPlan:
    if not files.is_folder(location):
        raise InputError(f"{location}: no such folder", "Check the path")
    if previous is not None:
        kept = _kept_options(previous, config)
        columns = {"url_col": kept["url_col"], "caption_col": kept["caption_col"]}  # a folder has no columns
        manifest.refuse_difference(out, kept, config.shaping() | columns, "set of options")
    reading = folder.reading_of(previous)
    planned = folder.plan_folder(location, out, config.samples_per_shard, previous)
    of_folder = iter(planned.shards)
    entries = [] if previous is None else [_Input(**entry) for entry in previous.options["inputs"]]
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
    # Absent in the output of older versions, which goes on under their rules.
    options = {**run.options, "source": "images", **({"reading": reading} if reading != FIRST_READING else {})}
    run = replace(run, options=options, listing=planned.accounts)
    return FetchPlan(run, previous, chosen, tuple(shards), location)


def _loose(location: str, number: int, source: SourceShard, reading: int) -> ShardRange:
    file = TableFile(location, source.name, "folder", False)
    return ShardRange(number, file, 0, folder.row_count(source, reading), source, 0)


def retry_file(out: str, retry: int) -> TableFile:
    """The file with the failed rows for a round of retries."""
    return TableFile(files.join(out, "retry", f"{retry:05d}.parquet"), f"retry:{retry}", "parquet", False)


def with_retry(plan: FetchPlan, out: str, rows: int, config: FetchConfig) -> FetchPlan:
    """`plan`, grown by another round of retries with `rows` rows in its file."""
    entries = plan.run.options["inputs"]
    retry = 1 + max((entry.get("retry", 0) for entry in entries), default=0)
    file = retry_file(out, retry)
    size = files.stat(file.location).bytes
    entry = _Input(file.name, size, rows, f"sha256:{files.sha256(file.location)}", "", retry)
    fresh = tuple(_ranges([(file, entry)], config.samples_per_shard, len(plan.shards)))
    run = replace(
        plan.run,
        options={**plan.run.options, "inputs": [*entries, dataclasses.asdict(entry)]},
        plan=(*plan.run.plan, *(shard.source for shard in fresh)),
    )
    return FetchPlan(run, plan.run, plan.layout, (*plan.shards, *fresh), plan.folder)


def _previous_run(out: str) -> RunCard | None:
    run = manifest.read_run(out)
    if run is None and files.names(out, ".tar"):
        raise RunMismatch(f"{out}: holds .tar files that fetch did not write", "Give another output folder")
    if run is not None and run.format != manifest.IMAGE_SHARDS:
        raise RunMismatch(f"{out}: holds {run.format}", "Give another output folder")
    return run


def _identify(file: TableFile, rows: int) -> _Input:
    stat = files.stat(file.location)
    if files.is_local(file.location) or not stat.modified:
        return _Input(file.name, stat.bytes, rows, f"sha256:{files.sha256(file.location)}", stat.modified)
    return _Input(file.name, stat.bytes, rows, f"mark:{stat.modified}", stat.modified)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _require_unchanged(out: str, found: Sequence[TableFile], known: dict[str, _Input]) -> None:
    """Raise RunMismatch unless all known tables are unchanged."""
    by_name = {file.name: file for file in found}
    if missing := sorted(known.keys() - by_name.keys()):
        raise RunMismatch(
            f"{out}: was made from {_listed(known)}; {missing[0]} is not among the files given now: {_listed(by_name)}",
            "Give the same table (new files beside the old ones are taken in), or another output folder",
        )
    for name, entry in known.items():
        stat = files.stat(by_name[name].location)
        if (stat.bytes, stat.modified) == (entry.bytes, entry.modified):
            continue  # same change mark: no need to read all of it
        now = _identify(by_name[name], entry.rows)
        if (now.bytes, now.identity) != (entry.bytes, entry.identity):
            raise RunMismatch(
                f"{out}: {by_name[name].location} changed since the run began"
                f" ({entry.bytes} bytes then, {now.bytes} now, {entry.identity[:19]}… then, {now.identity[:19]}… now)",
                "Put new rows in a file of their own beside it, or give another output folder",
            )


def _continued_layout(out: str, previous: RunCard, config: FetchConfig) -> Layout:
    """The layout of the run so far. Raises RunMismatch if the options have changed."""
    known_table = layout.unpacked_table(previous.options["table_schema"])
    wanted = config.shaping()
    kept = _kept_options(previous, config)
    if config.caption_col is None and kept["caption_col"] in (None, DEFAULT_CAPTION_COLUMN):
        wanted["caption_col"] = kept["caption_col"]
    manifest.refuse_difference(out, kept, wanted, "set of options")
    return Layout(config.url_col, wanted["caption_col"], known_table, config.rights != rights.OFF)


def _layout(fresh: Sequence[TableFile], surveyed: dict[str, tuple[int, pa.Schema]], config: FetchConfig) -> Layout:
    for file in fresh:
        layout.choose_columns(surveyed[file.name][1], config.url_col, config.caption_col, file.location)
    kinds: dict[str, pa.DataType] = {}
    for file in fresh:
        for field in surveyed[file.name][1]:
            kinds[field.name] = _joined(kinds.get(field.name), field, file)
    table = pa.schema(list(kinds.items()))
    chosen = layout.choose_columns(table, config.url_col, config.caption_col, fresh[0].location)
    return replace(chosen, with_rights=config.rights != rights.OFF)


def _joined(so_far: pa.DataType | None, field: pa.Field, file: TableFile) -> pa.DataType:
    kind = field.type if so_far is None else join_types(so_far, field.type)
    if kind is None and file.ending in table.TEXTUAL:
        return pa.string()  # any column can be stored as text
    if kind is None:
        raise InputError(f"{file.location}: the column {field.name} holds {field.type}, in earlier files {so_far}")
    return kind


def _widened(out: str, base: Layout, fresh: Sequence[TableFile], surveyed: dict[str, tuple[int, pa.Schema]]) -> Layout:
    """`base`, after checking that new files fit it: the columns of finished shards cannot change."""
    for file in fresh:
        schema = surveyed[file.name][1]
        layout.choose_columns(schema, base.url, base.caption, file.location)
        for field in schema:
            known = base.table.field(field.name).type if field.name in base.table.names else None
            text = known is not None and pa.types.is_string(known) and file.ending in table.TEXTUAL
            if known is None or (join_types(known, field.type) != known and not text):
                raise RunMismatch(
                    f"{out}: {file.location} has a column {field.name} of {field.type},"
                    f" in the shards so far it is {known or 'absent'}",
                    "Fetch this file to another output folder",
                )
    return base


def _ranges(
    inputs: Sequence[tuple[TableFile, _Input]], samples_per_shard: int, number: int = 0
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
    inputs: Sequence[_Input],
    shards: Sequence[ShardRange],
    previous: RunCard | None,
) -> RunCard:
    options: dict[str, Any] = config.shaping()
    options["source"] = "table"
    options["caption_col"] = chosen.caption
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
        columns={field.name: str(field.type) for field in (*chosen.fixed, *list(chosen.schema)[2:])},
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Versions of the installed packages that may affect the bytes."""
    found = {}
    for name in ("embedpipe", "img2dataset", "opencv-python-headless", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
