"""The report of a run, stored as `reports/00001.json` beside the shards, with the hosts that failed most."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .. import files, manifest
from ..manifest import RunCard, Totals
from ..parquet_tables import read_table
from ..progress import Listener, Progress, add_counts
from ..redact import redacted_values
from .config import FetchConfig
from .http.url import host_of
from .outcome import HostFailures

REPORTS = "reports"
_MOST_HOSTS = 100
# Failures are counted for this many hosts and classes; beyond it the rarer half is dropped.
_MOST_COUNTED = 200_000


class HostCounts:
    """Failures by host. Exact up to some 200,000 hosts, beyond which rare ones may be missing."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, failures: Iterable[tuple[str | None, str]]) -> None:
        """Count (url, error class) of failed rows."""
        self.counts.update((host, error_class) for url, error_class in failures if (host := host_of(url)))
        if len(self.counts) > _MOST_COUNTED:
            self.counts = Counter(dict(self.counts.most_common(_MOST_COUNTED // 2)))

    def worst(self, most: int = _MOST_HOSTS) -> tuple[HostFailures, ...]:
        """The hosts with the most failures, worst first."""
        by_host: dict[str, dict[str, int]] = {}
        for (host, error_class), count in sorted(self.counts.items()):
            by_host.setdefault(host, {})[error_class] = count
        found = [HostFailures(host, sum(classes.values()), classes) for host, classes in by_host.items()]
        return tuple(sorted(found, key=lambda entry: (-entry.failed, entry.host))[:most])


class RunReport:
    """A listener that writes a report at the end of a run."""

    def __init__(self, out: str, config: FetchConfig, listener: Listener) -> None:
        self.out = out
        self.config = config
        self.listener = listener
        self.began = datetime.datetime.now(datetime.UTC)
        self.begun_s = time.monotonic()
        self.rows = self.shards = self.received = 0
        self.failed: dict[str, int] = {}
        self.hosts = HostCounts()

    def __call__(self, step: Progress) -> None:
        """Count a progress report, and forward it."""
        self.rows += step.rows
        self.shards += step.tasks
        self.received += step.bytes
        self.failed = add_counts(self.failed, step.rejects)
        self.listener(step)

    def write(self, ended: str, total: Totals) -> str:
        """Write the report under the next free number; returns its location. ended: done, interrupted or failed."""
        seconds = max(1e-9, time.monotonic() - self.begun_s)
        failed = sum(self.failed.values())
        document: dict[str, Any] = {
            "began": self.began.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "ended": ended,
            "version": importlib.metadata.version("embedpipe"),
            "options": dataclasses.asdict(self.config),
            "this_run": {
                "shards": self.shards,
                "rows": self.rows,
                "succeeded": self.rows - failed,
                "failed": self.failed,
                "success_rate": round((self.rows - failed) / self.rows, 4) if self.rows else None,
                "urls_per_s": round(self.rows / seconds, 2),
                "received_bytes": self.received,
                "received_mb_per_s": round(self.received / 1e6 / seconds, 3),
                "hosts": [dataclasses.asdict(host) for host in self.hosts.worst()],
            },
            "total": dataclasses.asdict(total),
        }
        folder = files.join(self.out, REPORTS)
        numbers = [int(stem) for name in files.names(folder, ".json") if (stem := name[:-5]).isdecimal()]
        location = files.join(folder, f"{max(numbers, default=0) + 1:05d}.json")
        files.write_bytes(location, (json.dumps(redacted_values(document), indent=1) + "\n").encode())
        return location


def hosts_that_failed(path: str, run: RunCard, most: int) -> tuple[HostFailures, ...]:
    """The hosts with the most failures in an output, by each row's last outcome. Reads all its parquet files."""
    counts = HostCounts()
    later: set[str] = set()
    for number in reversed(manifest.committed_numbers(path)):
        location = files.join(path, f"{manifest.shard_name(number, run.shard_digits)}.parquet")
        rows = read_table(location, ["key", "url", "error_class", "retry_of"]).to_pylist()
        ended_here = [row for row in rows if (row["retry_of"] or row["key"]) not in later]
        later.update(row["retry_of"] for row in rows if row["retry_of"])
        counts.add((row["url"], row["error_class"]) for row in ended_here if row["error_class"])
    return counts.worst(most)
