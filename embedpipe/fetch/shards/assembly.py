"""Split shards into parts for the download processes, reassemble the results, and commit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ...accounts import Accounts, all_rows
from ...progress import Listener, Progress
from ...read.local_paths import NoPath, located
from ...taken_down import TakenDown
from ..config import FetchConfig
from ..download.messages import DownloadTask
from ..http.ssrf_guard import requested
from ..outcome import TAKEN_DOWN, Failure
from ..plan import FetchPlan, ShardRange
from ..planned_rows import shard_rows
from ..report import HostCounts
from ..tables.image_folder import accounts_of
from ..tables.schema import REFUSED_CLASS, REFUSED_MESSAGE, RETRY_OF
from . import commit
from .seen import Place, RepeatedUrls, StoredContents

SMALLEST_PART = 200  # rows; below that, another process costs more than it gains


@dataclass(frozen=True, slots=True)
class RunContext:
    """The inputs of a run. contents: an index of stored contents, to drop duplicates. parts: for unfinished parts.
    taken: what was taken out of the output, and is not fetched again."""

    plan: FetchPlan
    out: str
    config: FetchConfig
    repeats: RepeatedUrls
    contents: StoredContents | None
    parts: Path
    taken: TakenDown | None = None


@dataclass(slots=True)
class _OpenShard:
    """An unfinished shard. needs: the shards that must be committed first."""

    shard: ShardRange
    rows: pa.Table
    refused: dict[int, Failure]
    repeats: dict[int, Place]
    needs: set[int]
    parts: list[DownloadTask] = field(default_factory=list)
    waiting: int = 0


class Assembly:
    """Yields the parts of the shards in `todo` and commits each complete shard.

    A shard that repeats urls of earlier ones waits for those; if duplicates are dropped, for all earlier ones. There is
    no deadlock: earlier shards are handed out first.
    """

    def __init__(
        self, context: RunContext, todo: list[ShardRange], cuts: int, listener: Listener, hosts: HostCounts
    ) -> None:
        self.context = context
        self.hosts = hosts
        self.paths = context.plan.paths()
        self.cuts = cuts
        self.listener = listener
        self.uncommitted = {shard.number for shard in todo}
        self.open: dict[int, _OpenShard] = {}

    def tasks(self) -> Iterator[DownloadTask]:
        """The parts of all shards, their files written lazily."""
        for shard, rows in shard_rows(self.context.plan, frozenset(self.uncommitted)):
            opened = self._opened(shard, rows)
            refused = Counter(failure.error_class for failure in opened.refused.values())
            known = len(opened.refused) + len(opened.repeats)
            self.listener(Progress(rows=known, rejected=len(opened.refused), rejects=dict(refused)))
            self.open[shard.number] = opened
            if opened.parts:
                yield from opened.parts
            else:
                self._commit_whole()

    def _opened(self, shard: ShardRange, rows: pa.Table) -> _OpenShard:
        urls = rows.column("url").to_pylist()
        repeats = self.context.repeats.of(shard.number)
        requests = self._requests(shard, rows, repeats)
        refused = {i: request for i, request in requests.items() if isinstance(request, Failure)}
        if shard.source.members:
            rows, refused = _without_refusals(rows)
        if (taken := self.context.taken) is not None:
            refused |= {i: TAKEN_DOWN for i, url in enumerate(urls) if i not in repeats and taken.has_url(url)}
        needs = {number for number, _ in repeats.values()}
        if self.context.contents is not None:
            needs |= {number for number in self.uncommitted if number < shard.number}
        opened = _OpenShard(shard, rows, refused, repeats, needs - {shard.number})
        asked = [(i, requests.get(i, url)) for i, url in enumerate(urls) if i not in refused and i not in repeats]
        opened.parts = list(self._parts(shard, asked))
        opened.waiting = len(opened.parts)
        return opened

    def _requests(self, shard: ShardRange, rows: pa.Table, repeats: dict[int, Place]) -> dict[int, str | Failure]:
        """What to ask for, by row: urls, or local paths that a table names. Nothing for the files of a folder."""
        plan = self.context.plan
        if plan.images:
            return {}
        urls = enumerate(rows.column("url").to_pylist())
        if not plan.root:
            return {i: requested(url, self.context.config.allow_hosts) for i, url in urls if i not in repeats}
        homes = [shard.file.folder] * rows.num_rows
        if shard.retry:
            homes = [plan.shards[self._number(key)].file.folder for key in rows.column(RETRY_OF).to_pylist()]
        root = plan.root if plan.follows_links else ""
        return {i: _located(url, homes[i], root) for i, url in urls}

    def _number(self, key: str) -> int:
        """The shard of a row, by its key."""
        return commit.shard_of_key(key, self.context.config.samples_per_shard)

    def _parts(self, shard: ShardRange, urls: list[tuple[int, str]]) -> Iterator[DownloadTask]:
        """Ranges of urls, one task each. More than one only if there are fewer shards than processes."""
        size = max(SMALLEST_PART, math.ceil(len(urls) / self.cuts))
        for part, first in enumerate(range(0, len(urls), size)):
            piece = urls[first : first + size]
            task = DownloadTask(shard.number, part, len(piece), str(self.context.parts / f"{shard.number}-{part}"))
            if self.context.plan.images or self.context.plan.root:
                asked = pa.array([self._path(url) for _, url in piece], pa.binary())
            else:
                asked = pa.array([url for _, url in piece], pa.string())
            table = pa.table({"row": pa.array([i for i, _ in piece], pa.int32()), "url": asked})
            with pa.OSFile(task.urls_file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            yield task

    def _path(self, url: str) -> bytes:
        """The bytes of a file's path below the folder."""
        return self.paths.get(url, url).encode("utf-8", "surrogateescape")

    def take_in(self, task: DownloadTask) -> None:
        """Register a finished part, by its stem, and commit every shard that is now ready."""
        opened = self.open[task.shard]
        opened.parts[task.part] = task
        opened.waiting -= 1
        self._commit_whole()

    def _commit_whole(self) -> None:
        # In numerical order: one may have waited for the one before it.
        for number in sorted(self.open):
            opened = self.open[number]
            if not opened.waiting and not opened.needs & self.uncommitted:
                self._commit(opened)

    def _commit(self, opened: _OpenShard) -> None:
        context = self.context
        digits = context.plan.run.shard_digits
        fetched = commit.FetchedShard(
            opened.shard,
            opened.rows,
            opened.refused,
            opened.repeats,
            opened.parts,
            context.plan.images,
            context.plan.layout.fixed,
            _accounts(context.plan, opened),
        )
        committed = commit.commit_shard(context.out, fetched, digits, context.config, context.contents, context.taken)
        if context.contents is not None:
            context.contents.add(opened.shard.number, committed.stored)
        for part in opened.parts:
            for name in (part.images_file, part.outcomes_file):
                Path(name).unlink()
        del self.open[opened.shard.number]
        self.uncommitted.remove(opened.shard.number)
        self.hosts.add(committed.failures)
        late = committed.late_rejects
        self.listener(Progress(tasks=1, rejected=sum(late.values()), rejects=late))


def _accounts(plan: FetchPlan, opened: _OpenShard) -> Accounts:
    source = opened.shard.source
    return accounts_of(source, plan.rules) if source.members else all_rows(opened.rows.num_rows)


def _without_refusals(rows: pa.Table) -> tuple[pa.Table, dict[int, Failure]]:
    """The rows of a folder without the columns of refusals, and the refusals by row."""
    names = [REFUSED_CLASS, REFUSED_MESSAGE]
    said = enumerate(rows.select(names).to_pylist())
    refused = {i: Failure(row[REFUSED_CLASS], row[REFUSED_MESSAGE]) for i, row in said if row[REFUSED_CLASS]}
    return rows.drop(names), refused


def _located(url: str | None, home: str, root: str) -> str | Failure:
    found = located(url, home, root)
    if isinstance(found, NoPath):
        return Failure("outside_root" if found.leads_out else "invalid_url", found.why)
    return found
