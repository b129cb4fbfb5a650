"""One url in, the bytes of its answer out, within a deadline, a byte limit and a number of tries.

Stands in for img2dataset's own request function, which has no deadline for a whole answer, retries what cannot get
better, and tells neither tries nor content type. Knows nothing of img2dataset.
"""

from __future__ import annotations

import http.client
import random
import time
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from . import outcome
from .guard import refusal
from .outcome import Failure, NotFetched

_CHUNK = 1 << 16
_LONGEST_WAIT_S = 30.0
_RESERVED = "%/:?#[]@!$&'()*+,;=~"  # what has a meaning in a url, or is encoded already, stays

# All that urllib is known to raise for what a server says: that is data, anything else a fault of the program.
_WEB_FAULTS = (OSError, http.client.HTTPException, ValueError, LookupError, NotFetched)

Forbids = Callable[[Message], bool]


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient one request is. `timeout_s` bounds each wait, `deadline_s` a whole answer, `max_bytes` its size."""

    timeout_s: float
    deadline_s: float
    retries: int
    max_bytes: int = 50_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a url after `attempts` tries: a body, or a failure."""

    body: bytes | None
    failure: Failure | None
    attempts: int
    content_type: str | None = None


class _GuardedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where the url itself would have been fetched."""

    def __init__(self, allow_hosts: Collection[str]) -> None:
        self.allow_hosts = allow_hosts

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if failure := refusal(newurl, self.allow_hosts):
            raise NotFetched(Failure(failure.error_class, f"redirect to {newurl}: {failure.message}"))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Transport:
    """Gets urls, one per call, from any number of threads."""

    def __init__(self, limits: Limits, user_agent: str, allow_hosts: Collection[str], forbids: Forbids) -> None:
        self.limits = limits
        self.forbids = forbids
        self.headers = {"User-Agent": user_agent}
        self.opener = urllib.request.build_opener(_GuardedRedirects(allow_hosts))

    def get(self, url: str) -> Answer:
        """The answer to `url`. Failures that may pass are tried again after a jittered, growing pause."""
        attempts = 0
        while True:
            attempts += 1
            answer, pause_s = self._try_once(url, attempts)
            failure = answer.failure
            if failure is None or failure.error_class not in outcome.TRANSIENT or attempts > self.limits.retries:
                return answer
            time.sleep(pause_s)

    def _try_once(self, url: str, attempts: int) -> tuple[Answer, float]:
        pause_s = random.uniform(0.5, 1.0) * 0.5 * 2**attempts
        content_type = None
        try:
            started = time.monotonic()
            request = urllib.request.Request(in_ascii(url), headers=self.headers)
            with self.opener.open(request, timeout=self.limits.timeout_s) as response:
                content_type = response.headers.get_content_type() if "Content-Type" in response.headers else None
                if self.forbids(response.headers):
                    raise NotFetched(Failure("opt_out", "forbidden by X-Robots-Tag"))
                body = self._read(response, started + self.limits.deadline_s)
            return Answer(body, None, attempts, content_type), 0.0
        except _WEB_FAULTS as problem:
            headers = getattr(problem, "headers", None)
            return Answer(None, outcome.of_exception(problem), attempts, content_type), _asked_pause(headers, pause_s)

    def _read(self, response: Any, until: float) -> bytes:
        # read1 returns with what has come; read would wait for all of it, a byte a second.
        chunks: list[bytes] = []
        size = 0
        while chunk := response.read1(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if size > self.limits.max_bytes:
                raise NotFetched(Failure("too_large", f"more than {self.limits.max_bytes} bytes"))
            if time.monotonic() > until:
                raise NotFetched(Failure("timeout", f"not whole after {self.limits.deadline_s:g} s"))
        promised = response.headers.get("Content-Length")
        if promised and promised.isdigit() and size < int(promised):
            raise NotFetched(Failure("connection", f"closed after {size} of {promised} bytes"))
        if not size:
            raise NotFetched(Failure("empty", "no body"))
        return b"".join(chunks)


def in_ascii(url: str) -> str:
    """`url` as it goes over the wire: names in IDNA, other letters percent-encoded. UnicodeError for a bad name."""
    if url.isascii():
        return url
    parts = urlsplit(url)
    netloc = parts.netloc.encode("idna").decode()
    return urlunsplit((parts.scheme, netloc, *(quote(part, safe=_RESERVED) for part in parts[2:])))


def _asked_pause(headers: Any, otherwise_s: float) -> float:
    """Seconds that a Retry-After header asks for, bounded; `otherwise_s` without one (or with a date)."""
    asked = headers.get("Retry-After", "") if headers is not None else ""
    return min(float(asked), _LONGEST_WAIT_S) if asked.isdigit() else otherwise_s
