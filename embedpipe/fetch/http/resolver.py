"""DNS lookups with a timeout, which the C library's resolver cannot set.

Each lookup runs in its own thread, which the caller can abandon. Concurrent lookups of one name are shared, and results
are cached for a minute; the guard checks the addresses on every use.
"""

from __future__ import annotations

import concurrent.futures
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ...scarcity import lack_of, telling
from ..outcome import Failure, NotFetched, of_exception

Lookup = Callable[[str], Sequence[str]]
_Found = tuple[str, ...] | Failure

_KEPT_S = 60.0
_MOST_KEPT = 10_000
_MOST_PENDING = 256


def system_lookup(host: str) -> Sequence[str]:
    """The addresses of `host` from the system's resolver, best first. Raises OSError; UnicodeError for a bad name."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Resolver:
    """Resolves host names, from any number of threads."""

    def __init__(self, lookup: Lookup = system_lookup, kept_s: float = _KEPT_S) -> None:
        self.lookup = lookup
        self.kept_s = kept_s
        self.lock = threading.Lock()
        self.pending: dict[str, Future[_Found]] = {}
        self.kept: OrderedDict[str, tuple[float, _Found]] = OrderedDict()

    def addresses(self, host: str, wait_s: float) -> Sequence[str]:
        """The addresses of `host`. Raises NotFetched if there are none, or no response within `wait_s`."""
        with self.lock:
            known = self.kept.get(host)
            if known is not None and known[0] > time.monotonic():
                return _addresses(known[1])
            future = self.pending.get(host) or self._begin(host)
        try:
            return _addresses(future.result(wait_s))
        except concurrent.futures.TimeoutError:
            raise NotFetched(Failure("dns", f"no answer from the resolver within {wait_s:.3g} s", True)) from None

    def _begin(self, host: str) -> Future[_Found]:
        if len(self.pending) >= _MOST_PENDING:
            raise NotFetched(Failure("dns", f"the resolver leaves {_MOST_PENDING} lookups unanswered", True))
        future: Future[_Found] = Future()
        thread = threading.Thread(target=self._look_up, args=(host, future), name=f"resolve {host}", daemon=True)
        with telling():
            thread.start()
        self.pending[host] = future
        return future

    def _look_up(self, host: str, future: Future[_Found]) -> None:
        found: _Found | BaseException
        try:
            found = tuple(self.lookup(host)) or Failure("dns", "the name has no addresses")
        except (OSError, UnicodeError, MemoryError) as problem:
            lack = problem if lack_of(problem) is not None else _hidden_lack()
            # EAI_AGAIN means that the name server did not respond; other errors are final.
            passing = isinstance(problem, socket.gaierror) and problem.errno == socket.EAI_AGAIN
            found = lack or Failure(of_exception(problem).error_class, str(problem), passing)
        with self.lock:
            if not isinstance(found, BaseException) and not (isinstance(found, Failure) and found.passing):
                self.kept[host] = (time.monotonic() + self.kept_s, found)
                if len(self.kept) > _MOST_KEPT:
                    self.kept.popitem(last=False)
            del self.pending[host]
        if isinstance(found, BaseException):
            future.set_exception(found)
        else:
            future.set_result(found)


def _hidden_lack() -> OSError | None:
    """The lack of open files behind a failed lookup: the C library says that the name is not known."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as problem:
        return problem
    return None


def _addresses(found: _Found) -> Sequence[str]:
    # A failure is cached as a value: re-raising one exception would lengthen its traceback each time.
    if isinstance(found, Failure):
        raise NotFetched(found)
    return found
