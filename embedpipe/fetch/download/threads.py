"""The threads that download one part of a shard, and the order in which they try its urls.

This replaces the loop in img2dataset's `Downloader`, whose threads sleep between retries and queue up behind one slow
host. The threads only download; the caller of `answers` decodes, one image after another.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterable, Iterator

from ..http.client import HttpClient, Response
from ..outcome import Failure
from .host_scheduler import LONGEST_PAUSE_S, HostScheduler, Job, pause_s

# Statuses that apply to the whole host.
_SPEAK_FOR_THE_HOST = frozenset({"http_429", "http_5xx"})


class DownloadLoop:
    """Downloads urls with `threads` threads, with up to `1 + retries` attempts each."""

    def __init__(self, transport: HttpClient, threads: int, retries: int, per_host: int) -> None:
        self.transport = transport
        self.threads = threads
        self.retries = retries
        self.per_host = per_host

    def answers(self, urls: Iterable[str]) -> Iterator[tuple[int, Response]]:
        """The position and response of every url, in order of arrival; if a position comes again, the last one counts.

        Again come those whose first response may belong to another url (see `http.order`).
        A bug in a thread loses only its current url: the traceback goes to stderr.
        """
        asked = list(urls)
        yield from self._round([Job(position, url) for position, url in enumerate(asked)])
        if void := self.transport.settle():
            yield from self._round([Job(position, asked[position], alone=True) for position in sorted(void)])

    def _round(self, jobs: list[Job]) -> Iterator[tuple[int, Response]]:
        pace = HostScheduler(jobs, self.per_host)
        # Bounded, so that threads wait for decoding instead of accumulating bodies.
        arrived: queue.Queue[tuple[int, Response] | None] = queue.Queue(self.threads)
        running = 0
        for _ in range(min(self.threads, pace.unfinished)):
            self._start(pace, arrived)
            running += 1
        try:
            while running:
                found = arrived.get()
                if found is not None:
                    yield found
                    self.transport.done_with(found[1])
                    del found
                elif pace.unfinished:  # a thread crashed
                    self._start(pace, arrived)
                else:
                    running -= 1
        finally:
            pace.close()

    def _start(self, pace: HostScheduler, arrived: queue.Queue[tuple[int, Response] | None]) -> None:
        # Daemons: a process that must end does not wait for a slow server.
        threading.Thread(target=self._download, args=(pace, arrived), name="download", daemon=True).start()

    def _download(self, pace: HostScheduler, arrived: queue.Queue[tuple[int, Response] | None]) -> None:
        try:
            while (job := pace.take()) is not None:
                answer = self._ask(job, pace)
                if answer is not None:
                    arrived.put((job.position, answer))
                del answer  # or its body would stay in memory until the next one arrives
        finally:
            arrived.put(None)

    def _ask(self, job: Job, pace: HostScheduler) -> Response | None:
        """One attempt; None if it will be retried."""
        handed_back = False
        try:
            job.attempts += 1
            answer = self.transport.get(job.url, None if job.alone else job.position)
            failure = answer.failure
            if failure is not None and failure.may_pass() and job.attempts <= self.retries:
                asked_s = answer.asked_pause_s
                if asked_s is None or asked_s <= LONGEST_PAUSE_S:
                    whole_host = asked_s is not None and failure.error_class in _SPEAK_FOR_THE_HOST
                    pace.again(job, pause_s(job.attempts, asked_s), whole_host)
                    handed_back = True
                    return None
                message = f"{failure.message}; asks to come back in {asked_s:,.0f} s, longer than fetch waits"
                answer = dataclasses.replace(answer, failure=Failure(failure.error_class, message))
            return dataclasses.replace(answer, attempts=job.attempts)
        finally:
            if not handed_back:
                pace.finish(job)
