"""The threads that download one part of a shard, and the order in which they try its urls.

This replaces the loop in img2dataset's `Downloader`, whose threads sleep between retries and queue up behind one slow
host. The threads only download; the caller of `answers` decodes, one image after another.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterable, Iterator

from ...errors import OutOfResources
from ...scarcity import most_open_files, telling
from ..http.client import HttpClient, Response
from ..http.connections import MOST_KEPT
from ..outcome import Failure
from .host_scheduler import LONGEST_PAUSE_S, HostScheduler, Job, pause_s

# Statuses that apply to the whole host.
_SPEAK_FOR_THE_HOST = frozenset({"http_429", "http_5xx"})
_FILES_OF_THE_PROCESS = 32
_FILES_PER_THREAD = 3  # a connection, and the two files that the C library reads for a lookup
_LACK_PAUSE_S = 1.0
_PATIENCE_S = 30.0  # with a lack of this machine


def affordable_threads() -> int:
    """How many threads the open files of a process are enough for; connections without a thread are kept besides."""
    return max(1, (most_open_files() - _FILES_OF_THE_PROCESS - MOST_KEPT) // _FILES_PER_THREAD)


class _Crew:
    """How many threads a round has, and for how long this machine has lacked something.

    A lack is no failure of a url: the url is asked for again, by fewer threads. `lack`: set once it has lasted too
    long, with no answer in between.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.surplus = 0
        self.lock = threading.Lock()
        self.lacking_since_s: float | None = None
        self.lack: OutOfResources | None = None

    def met(self, lack: OutOfResources) -> None:
        """A thread met a lack: one of them has to end, unless it is the last."""
        with self.lock:
            now = time.monotonic()
            self.lacking_since_s = self.lacking_since_s or now
            if self.size > 1:
                self.size -= 1
                self.surplus += 1
            if now - self.lacking_since_s > _PATIENCE_S:
                self.lack = lack

    def met_none(self) -> None:
        """This machine could ask for a url."""
        self.lacking_since_s = None

    def is_surplus(self) -> bool:
        """Whether the calling thread has to end; true once for each that has to."""
        with self.lock:
            if not self.surplus:
                return False
            self.surplus -= 1
            return True


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
        A bug in a thread loses only its current url: the traceback goes to stderr. Raises OutOfResources if this
        machine cannot ask for any url for half a minute.
        """
        asked = list(urls)
        yield from self._round([Job(position, url) for position, url in enumerate(asked)])
        while void := self.transport.settle():
            yield from self._round([Job(position, asked[position], alone=True) for position in sorted(void)])

    def _round(self, jobs: list[Job]) -> Iterator[tuple[int, Response]]:
        pace = HostScheduler(jobs, self.per_host)
        # Bounded, so that threads wait for decoding instead of accumulating bodies.
        arrived: queue.Queue[tuple[int, Response] | None] = queue.Queue(self.threads)
        crew = _Crew(min(self.threads, pace.unfinished))
        running = 0
        try:
            while running < crew.size and self._start(pace, arrived, crew, may_fail=running > 0):
                running += 1
            while running:
                found = arrived.get()
                if found is not None:
                    yield found
                    self.transport.done_with(found[1])
                    del found
                    continue
                running -= 1
                if pace.unfinished and running < crew.size and crew.lack is None:  # a thread crashed
                    running += self._start(pace, arrived, crew, may_fail=running > 0)
            if crew.lack is not None:
                raise crew.lack
        finally:
            pace.close()

    def _start(
        self, pace: HostScheduler, arrived: queue.Queue[tuple[int, Response] | None], crew: _Crew, may_fail: bool
    ) -> bool:
        """Start a thread; if this machine has no room for one and it `may_fail`, have one less from now on."""
        # Daemons: a process that must end does not wait for a slow server.
        thread = threading.Thread(target=self._download, args=(pace, arrived, crew), name="download", daemon=True)
        try:
            with telling():
                thread.start()
        except OutOfResources:
            if not may_fail:
                raise
            crew.size -= 1
            return False
        return True

    def _download(self, pace: HostScheduler, arrived: queue.Queue[tuple[int, Response] | None], crew: _Crew) -> None:
        try:
            while not crew.is_surplus() and (job := pace.take()) is not None:
                answer = self._ask(job, pace, crew)
                if answer is not None:
                    arrived.put((job.position, answer))
                del answer  # or its body would stay in memory until the next one arrives
        finally:
            arrived.put(None)

    def _ask(self, job: Job, pace: HostScheduler, crew: _Crew) -> Response | None:
        """One attempt; None if it will be retried."""
        handed_back = False
        try:
            job.attempts += 1
            answer = self.transport.get(job.url, job.position, final=job.alone)
            crew.met_none()
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
        except OutOfResources as lack:
            crew.met(lack)
            job.attempts -= 1
            self.transport.release()
            pace.again(job, _LACK_PAUSE_S, whole_host=False)
            handed_back = True
            if crew.lack is not None:
                pace.close()
            return None
        finally:
            if not handed_back:
                pace.finish(job)
