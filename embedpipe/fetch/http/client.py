"""HTTP client: one url → image bytes or a failure, in one attempt within one deadline.

The deadline covers everything: name resolution, connecting, TLS, redirects, slow headers, the body. Independent of
threads, retries (`download.threads`) and img2dataset.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from urllib.parse import quote, urljoin

from ...errors import OutOfResources
from ...scarcity import has_network, lack_of, out_of
from .. import outcome
from ..outcome import Failure, NotFetched
from . import body, optout_headers, robots, ssrf_guard, tdmrep
from .body import ByteBudget
from .connections import Connections, Target, target_of
from .deadline import Deadline
from .link import Answer
from .origin_rules import Origin, OriginRules, RulesCache
from .url import InvalidUrl, normalised

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RESERVED = "%/:?#[]@!$&'()*+,;=~"  # reserved and already encoded characters are kept
# Exceptions that http.client, ssl and socket raise for a server's response: those are data, any other is a bug.
_WEB_FAULTS = (OSError, http.client.HTTPException, ValueError, LookupError, NotFetched)
_LIKE_NO_NETWORK = frozenset({"dns", "connection", "timeout"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one attempt: `timeout_s` for each wait, `deadline_s` for the whole, `max_bytes` for the body."""

    timeout_s: float
    deadline_s: float
    max_bytes: int = 50_000_000


@dataclass(frozen=True, slots=True)
class Response:
    """The result of one attempt: a body, or a failure.

    `attempts`: how many it took in all. `asked_pause_s`: the server's Retry-After, if any. `held`: see `body.Body`.
    """

    body: bytes | None
    failure: Failure | None
    attempts: int = 1
    content_type: str | None = None
    asked_pause_s: float | None = None
    held: int = 0


class _Refused(NotFetched):
    """An unsuccessful response, with its headers."""

    def __init__(self, failure: Failure, headers: Message) -> None:
        super().__init__(failure)
        self.headers = headers


class HttpClient:
    """Downloads urls, one per call, from any number of threads."""

    def __init__(self, limits: Limits, user_agent: str, connections: Connections, with_robots: bool = False) -> None:
        self.limits = limits
        # Images are already compressed; responses that are encoded anyway are decoded (`body`).
        self.headers = {"User-Agent": user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        self.connections = connections
        self.large = ByteBudget()
        self.rules = RulesCache(self._ask_rules) if with_robots else None

    def get(self, url: str, position: int | None = None, final: bool = False) -> Response:
        """The response for `url` in one attempt.

        With a `position`, it may come over a connection that was used before: it counts unless `settle` returns that
        position. Without one, or if it is to be `final`, every request has a connection of its own. Raises
        OutOfResources if this machine cannot ask.
        """
        content_type: str | None = None
        try:
            deadline = Deadline(self.limits.deadline_s, self.limits.timeout_s)
            with self._following(normalised(url), deadline, self.rules, None if final else position) as response:
                headers = response.headers
                if not 200 <= response.status < 300:
                    raise _Refused(outcome.of_status(response.status, response.reason), headers)
                content_type = headers.get_content_type() if "Content-Type" in headers else None
                if (forbidden := optout_headers.forbidden_by(headers)) is not None:
                    raise NotFetched(Failure("opt_out", f"forbidden by {forbidden}"))
                found = body.read(response, self.limits.max_bytes, deadline, self.large)
                if position is not None:
                    self.connections.order.compare(position, hash(found.data), response.earlier, final)
            return Response(found.data, None, content_type=content_type, held=found.held)
        except (*_WEB_FAULTS, MemoryError) as problem:
            failure = self._failure_of(problem)
            asked_s = asked_pause_s(problem.headers) if isinstance(problem, _Refused) else None
            return Response(None, failure, content_type=content_type, asked_pause_s=asked_s)

    def done_with(self, answer: Response) -> None:
        """Release the memory budget of `answer`'s body."""
        if answer.held:
            self.large.give_back(answer.held)

    def settle(self) -> set[int]:
        """End all connections, with no request under way; returns the positions that must be asked for again."""
        return self.connections.settle()

    def release(self) -> None:
        """End the connections that are not in use."""
        self.connections.release()

    def _failure_of(self, problem: Exception) -> Failure:
        """The failure for an exception. Raises OutOfResources if it is this machine's and not the server's."""
        if (lack := lack_of(problem)) is not None:
            raise out_of(lack) from problem
        failure = outcome.of_exception(problem)
        # Without a network, what this machine serves to itself can still be asked for.
        local_only = self.connections.local_only and self.connections.answered
        if failure.error_class in _LIKE_NO_NETWORK and not local_only and not has_network():
            raise OutOfResources(
                f"this machine has no network: {failure.message}",
                "What is committed is whole. Connect it, and run the same command again",
            ) from problem
        return failure

    @contextlib.contextmanager
    def _following(
        self, url: str, deadline: Deadline, rules: RulesCache | None, position: int | None
    ) -> Iterator[Answer]:
        """The response for `url` after redirects, each guarded like the first url, and checked by `rules` if any."""
        for step in range(MAX_REDIRECTS + 1):
            if (failure := ssrf_guard.refusal(url, self.connections.allow_hosts)) is not None:
                shown = f"redirect to {url[:200]}: " if step else ""
                raise NotFetched(Failure(failure.error_class, shown + failure.message))
            target = target_of(url)
            if rules is not None:
                _require_leave(rules.rules(target.origin), target)
            with self._asking(target, deadline, position) as response:
                location = response.headers.get("Location") if response.status in _REDIRECTS else None
                if location is None:
                    yield response
                    return
            url = _redirected(url, location)
        raise NotFetched(Failure("redirect", f"more than {MAX_REDIRECTS} redirects"))

    @contextlib.contextmanager
    def _asking(self, target: Target, deadline: Deadline, position: int | None) -> Iterator[Answer]:
        connection, response = self.connections.ask(target, self.headers, deadline, position)
        failed = True
        try:
            yield response
            failed = False
        except NotFetched:  # our own judgement of a response that came in order
            failed = False
            raise
        finally:
            self.connections.give_back(connection, response, failed)

    def _ask_rules(self, origin: Origin) -> OriginRules:
        try:
            text = self._ask_for(origin, "/robots.txt", robots.MAX_BYTES)
            rules = (
                robots.parse_robots(text.decode("utf-8", "replace"), optout_headers.AGENT) if text else robots.ALLOW_ALL
            )
            return OriginRules(rules, tdmrep.parse_tdmrep(self._ask_for(origin, tdmrep.PATH, tdmrep.MAX_BYTES)))
        except NotFetched as problem:
            return OriginRules(unreachable=problem.failure)

    def _ask_for(self, origin: Origin, path: str, most_bytes: int) -> bytes:
        """The start of a file of an origin; empty if it has none. Raises NotFetched if that cannot be known."""
        scheme, host, port = origin
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"
        # A separate deadline: the rules are used for the whole run, however little time is left for this url.
        deadline = Deadline(self.limits.timeout_s, self.limits.timeout_s)
        try:
            with self._following(url, deadline, None, None) as response:
                if 400 <= response.status < 500:
                    return b""
                if not 200 <= response.status < 300:
                    raise NotFetched(outcome.of_status(response.status, response.reason))
                return body.read_start(response, most_bytes)
        except _WEB_FAULTS as problem:
            failure = self._failure_of(problem)
            said = f"{path.rpartition('/')[2]} of {host}: {failure.message}"
            raise NotFetched(Failure(failure.error_class, said, False)) from problem


def _require_leave(rules: OriginRules, target: Target) -> None:
    if (failure := rules.refusal(target.host, target.path)) is not None:
        raise NotFetched(failure)


def _redirected(url: str, location: str) -> str:
    # http.client decodes headers as Latin-1, whatever their encoding.
    target = urljoin(url, quote(str(location).strip().encode("latin-1", "replace"), safe=_RESERVED))
    try:
        return normalised(target)
    except InvalidUrl:
        return target  # the guard says what is wrong with it


def asked_pause_s(headers: Message) -> float | None:
    """Seconds until the time in a Retry-After header, a number or a date; None if missing or invalid."""
    asked = str(headers.get("Retry-After", "")).strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        at = email.utils.parsedate_to_datetime(asked)
    except (ValueError, TypeError):
        return None
    return max(0.0, at.timestamp() - time.time())
