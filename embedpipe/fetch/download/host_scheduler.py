"""Per-host scheduler; waiting urls hold no thread.

Every host has its own queue and a limit on concurrent requests; hosts take turns. A url waiting for a retry stays here
until it is due, and takes up neither a thread nor one of its host's slots.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LONGEST_PAUSE_S = 30.0
HOST_PAUSES_S = 60.0  # total time that one part of a shard waits for a host on its request
_FIRST_PAUSE_S = 1.0


@dataclass(slots=True)
class Job:
    """One url to download: its position in the part, and the number of attempts so far.

    alone: whether it needs a connection of its own.
    """

    position: int
    url: str
    attempts: int = 0
    alone: bool = False
    host: str = field(init=False)

    def __post_init__(self) -> None:
        self.host = (urlsplit(self.url).hostname or "").rstrip(".")


@dataclass(slots=True)
class _Host:
    waiting: deque[Job] = field(default_factory=deque)
    running: int = 0
    listed: bool = False  # queued for its turn
    silent_until: float = 0.0
    paused_s: float = 0.0


def pause_s(attempts: int, asked_s: float | None) -> float:
    """Seconds until the next attempt after `attempts` failures; at least the server's Retry-After."""
    grown = min(_FIRST_PAUSE_S * 2.0 ** (attempts - 1), LONGEST_PAUSE_S)
    return max(random.uniform(0.5, 1.0) * grown, asked_s or 0.0)


class HostScheduler:
    """Hands out jobs to any number of threads until all are finished."""

    def __init__(self, jobs: Iterable[Job], per_host: int) -> None:
        self.per_host = per_host
        self.changed = threading.Condition()
        self.hosts: dict[str, _Host] = {}
        self.turn: deque[_Host] = deque()
        self.later: list[tuple[float, int, Job | _Host]] = []
        self.order = itertools.count()
        self.unfinished = 0
        self.closed = False
        now = time.monotonic()
        for job in jobs:
            self.unfinished += 1
            self._enqueue(job, now)

    def take(self) -> Job | None:
        """The next job, once one is due; None if there are no more."""
        with self.changed:
            while True:
                if self.closed or not self.unfinished:
                    return None
                now = time.monotonic()
                self._wake(now)
                job = self._next(now)
                if job is not None:
                    return job
                self.changed.wait(self.later[0][0] - now if self.later else None)

    def finish(self, job: Job) -> None:
        """`job` needs no further attempt."""
        with self.changed:
            self.unfinished -= 1
            self._leave(self.hosts[job.host], time.monotonic())
            self.changed.notify() if self.unfinished else self.changed.notify_all()

    def again(self, job: Job, pause_s: float, whole_host: bool) -> None:
        """Retry `job` in `pause_s`; with `whole_host`, pause all urls of its host until then.

        A host is paused for up to `HOST_PAUSES_S` in all, or one that always asks to retry later would block the part.
        """
        with self.changed:
            now = time.monotonic()
            due = now + pause_s
            host = self.hosts[job.host]
            if whole_host and host.paused_s + pause_s <= HOST_PAUSES_S:
                host.paused_s += max(0.0, due - max(host.silent_until, now))
                host.silent_until = max(host.silent_until, due)
            heapq.heappush(self.later, (due, next(self.order), job))
            self._leave(host, now)
            self.changed.notify()

    def close(self) -> None:
        """Hand out nothing more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _enqueue(self, job: Job, now: float) -> None:
        host = self.hosts.setdefault(job.host, _Host())
        host.waiting.append(job)
        self._stand_in_line(host, now)

    def _stand_in_line(self, host: _Host, now: float) -> None:
        # `now` is the caller's: with a second reading of the clock, a host could be paused for `_next` but not here,
        # and loop between the two for ever.
        if host.listed or not host.waiting or host.running >= self.per_host:
            return
        host.listed = True
        if host.silent_until > now:
            heapq.heappush(self.later, (host.silent_until, next(self.order), host))
        else:
            self.turn.append(host)

    def _wake(self, now: float) -> None:
        """Requeue jobs and hosts that are due."""
        while self.later and self.later[0][0] <= now:
            _, _, woken = heapq.heappop(self.later)
            if isinstance(woken, Job):
                self._enqueue(woken, now)
            else:
                woken.listed = False
                self._stand_in_line(woken, now)

    def _next(self, now: float) -> Job | None:
        while self.turn:
            host = self.turn.popleft()
            host.listed = False
            if host.silent_until > now:  # it was paused while queued
                self._stand_in_line(host, now)
                continue
            host.running += 1
            job = host.waiting.popleft()
            self._stand_in_line(host, now)
            # The notified thread takes the next turn, or waits until the next one is due.
            if self.turn or self.later:
                self.changed.notify()
            return job
        return None

    def _leave(self, host: _Host, now: float) -> None:
        host.running -= 1
        self._stand_in_line(host, now)
