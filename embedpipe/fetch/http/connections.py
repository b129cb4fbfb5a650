"""Reusable connections to checked addresses; no wait exceeds the deadline.

http.client speaks the protocol over a `Link`, which takes the role of its socket. Which answers can be believed is
decided when a connection ends (`order`). Proxy environment variables are ignored: a proxy resolves names itself, so the
address would go unchecked.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from ...scarcity import lack_of
from ..outcome import Failure, NotFetched
from . import ssrf_guard
from .deadline import Deadline
from .link import Answer, Heard, Link
from .order import AnswerOrder, Origin
from .resolver import Resolver

_MOST_ADDRESSES = 4  # tried per name before giving up
_MOST_IDLE = 64
_MOST_ENDING = 64
MOST_KEPT = _MOST_IDLE + _MOST_ENDING
_IDLE_S = 2.0  # shorter than servers wait: a connection that they end proves nothing
_END_S = 5.0  # to wait for servers to close their side
_MOST_REQUESTS = 32  # per connection: the most that are asked for again if it ends out of order
_DRAINED = 1 << 16  # bytes of an unwanted body that are read to keep the connection
_DRAIN_S = 1.0
# Exceptions from reusing a connection that the server has closed.
_STALE = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

# Connects to an address and port within a timeout in seconds.
Dial = Callable[[tuple[str, int], float], socket.socket]


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a url needed for a request. `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> Origin:
        """The origin, the key for connections and robots.txt."""
        return (self.scheme, self.host, self.port)


def target_of(url: str) -> Target:
    """The target of an ASCII url that the guard has accepted."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname or "", port, path)


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A TLS context that trusts the system's certificate authorities and those in `ca_file`. Raises OSError."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


class Connection:
    """One request after another to the same origin, at the same address.

    position: of the url under way. provisional: of those that were answered on it after its first request.
    """

    def __init__(self, target: Target, link: Link) -> None:
        self.origin = target.origin
        self.link = link
        self.idle_since = 0.0
        self.requests = 0
        self.position: int | None = None
        self.provisional: list[int] = []
        self.bodies: set[int] = set()
        self.http = http.client.HTTPConnection(target.host, target.port)
        self.http.response_class = Answer
        self.http.default_port = 443 if target.scheme == "https" else 80  # omitted from the Host header
        self.http.auto_open = 0  # it never connects by itself

    def request(self, target: Target, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        """Send a request; returns the response, its body unread."""
        self.requests += 1
        self.link.deadline = deadline
        self.http.sock = self.link  # type: ignore[assignment]
        self.http.request("GET", target.path, headers=dict(headers))
        response = self.http.getresponse()
        assert isinstance(response, Answer)
        response.earlier = self.bodies
        return response

    def close(self) -> None:
        """Close it, whatever its state."""
        self.link.socket.close()


class Connections:
    """Opens connections to public addresses, and keeps a few for the next request to the same origin."""

    def __init__(
        self,
        resolver: Resolver,
        allow_hosts: Collection[str] = (),
        ca_file: str | None = None,
        dial: Dial = socket.create_connection,
    ) -> None:
        self.resolver = resolver
        self.dial = dial
        self.allow_hosts = allow_hosts
        self.tls = tls_context(ca_file)
        self.order = AnswerOrder()
        self.answered, self.local_only = False, True  # whether any server has, and whether all were this machine
        self.lock = threading.Lock()
        self.idle: collections.deque[Connection] = collections.deque()
        self.ending: collections.deque[Connection] = collections.deque()

    def ask(
        self, target: Target, headers: Mapping[str, str], deadline: Deadline, position: int | None
    ) -> tuple[Connection, Answer]:
        """Send a GET. The caller ends with `give_back`.

        `position` identifies the url until `settle`; without one, or where answers have been out of order, the request
        has a connection of its own.
        """
        alone = position is None or not self.order.may_reuse(target.origin)
        used = None if alone else self._take(target)
        if used is not None:
            assert position is not None
            used.position = position
            used.provisional.append(position)
            self.order.note(used.origin, position)
            try:
                return self._asked(used, target, headers, deadline)
            except _STALE:
                pass  # closed while sending: not a response, so it does not count as an attempt
        opened = self._opened(target, deadline)
        opened.position = position
        return self._asked(opened, target, {**headers, "Connection": "close"} if alone else headers, deadline)

    def give_back(self, connection: Connection, response: http.client.HTTPResponse, failed: bool = False) -> None:
        """Keep the connection for another request if the response was read completely and intact; end it otherwise."""
        will_close = response.will_close
        whole = _is_whole(response) if will_close or failed else _drained(response, connection)
        response.close()
        if whole and connection.link.has_leftovers:
            if connection.position is not None:  # its end is in doubt
                self.order.note(connection.origin, connection.position)
            self._judge(connection, Heard.BYTES)
        elif will_close or not whole:
            self._judge(connection, Heard.BROKEN)
        elif connection.requests >= _MOST_REQUESTS:
            self._retire([connection])
        else:
            connection.idle_since = time.monotonic()
            with self.lock:
                self.idle.append(connection)
                surplus = [self.idle.popleft()] if len(self.idle) > _MOST_IDLE else []
            self._retire(surplus)

    def settle(self) -> set[int]:
        """End all connections, with no request under way; returns the positions that must be asked for again."""
        self.release()
        until = time.monotonic() + _END_S
        while self.ending and (left_s := until - time.monotonic()) > 0:
            poll = select.poll()
            for connection in self.ending:
                poll.register(connection.link.socket, select.POLLIN)
            poll.poll(1000 * left_s)
            self._tend()
        for connection in self.ending:
            self._judge(connection, Heard.BROKEN)
        self.ending.clear()
        return self.order.settle()

    def release(self) -> None:
        """End the connections that are not in use."""
        with self.lock:
            idle = list(self.idle)
            self.idle.clear()
        self._retire(idle)

    def _take(self, target: Target) -> Connection | None:
        oldest = time.monotonic() - _IDLE_S
        with self.lock:
            stale = [kept for kept in self.idle if kept.idle_since <= oldest]
            for kept in stale:
                self.idle.remove(kept)
            found = next((kept for kept in self.idle if kept.origin == target.origin), None)
            if found is not None:
                self.idle.remove(found)
        self._retire(stale)
        if found is None:
            return None
        heard = found.link.hears()
        if heard is Heard.NOTHING:
            return found
        self._judge_early(found, heard)
        return None

    def _retire(self, connections: list[Connection]) -> None:
        """Close our side; the answers are certain once the server has closed its own without another byte."""
        for connection in connections:
            heard = connection.link.hears()
            if heard is not Heard.NOTHING:
                self._judge_early(connection, heard)
            elif not connection.provisional:
                connection.close()
            else:
                self._begin_end(connection)
        if connections:
            self._tend()

    def _begin_end(self, connection: Connection) -> None:
        try:
            connection.link.end_sending()
        except OSError:
            self._judge(connection, Heard.BROKEN)
            return
        with self.lock:
            self.ending.append(connection)

    def _tend(self) -> None:
        """Judge the connections whose servers have closed their side, and the oldest of too many others."""
        with self.lock:
            ending = list(self.ending)
            self.ending.clear()
        waiting = []
        for connection in ending:
            if (heard := connection.link.hears()) is Heard.NOTHING:
                waiting.append(connection)
            else:
                self._judge(connection, heard)
        too_many = max(0, len(waiting) - _MOST_ENDING)
        for connection in waiting[:too_many]:
            self._judge(connection, Heard.BROKEN)
        with self.lock:
            self.ending.extend(waiting[too_many:])

    def _judge_early(self, connection: Connection, heard: Heard) -> None:
        # An end that we did not ask for proves nothing: the server may have left a request unanswered.
        self._judge(connection, Heard.BYTES if heard is Heard.BYTES else Heard.BROKEN)

    def _judge(self, connection: Connection, heard: Heard) -> None:
        """Close a connection; its provisional answers are certain if `heard` is the end that we asked for."""
        connection.close()
        if heard is Heard.BYTES or (heard is not Heard.END and connection.provisional):
            self.order.distrust(connection.origin, connection.provisional, all_of_origin=heard is Heard.BYTES)

    def _asked(
        self, connection: Connection, target: Target, headers: Mapping[str, str], deadline: Deadline
    ) -> tuple[Connection, Answer]:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._judge, connection, Heard.BROKEN)
            response = connection.request(target, headers, deadline)
            on_failure.pop_all()
            self.answered = True
            return connection, response

    def _opened(self, target: Target, deadline: Deadline) -> Connection:
        link = self._connect(target, deadline)
        if link.hears() is Heard.BYTES:
            link.socket.close()
            raise NotFetched(Failure("connection", "the server spoke before it was asked"))
        return Connection(target, link)

    def _connect(self, target: Target, deadline: Deadline) -> Link:
        found = self.resolver.addresses(target.host, deadline.wait_s())
        usable = ssrf_guard.usable(target.host, target.port, found, self.allow_hosts)[:_MOST_ADDRESSES]
        problem: OSError = OSError("no address")
        for address in usable:
            try:
                connected = self.dial((address, target.port), deadline.wait_s())
            except OSError as refused:
                # Without an IPv6 address of its own, a machine has no port for one either.
                if lack_of(refused) is not None and not (refused.errno == errno.EADDRNOTAVAIL and ":" in address):
                    raise
                problem = refused if lack_of(refused) is None else OSError(errno.ENETUNREACH, "no IPv6 here")
                continue
            self.local_only &= ip_address(address.partition("%")[0]).is_loopback
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Link(self._secured(connected, target, deadline), deadline)
        raise problem

    def _secured(self, connected: socket.socket, target: Target, deadline: Deadline) -> socket.socket:
        if target.scheme != "https":
            return connected
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(connected.close)
            connected.settimeout(deadline.wait_s())
            try:
                secured = self.tls.wrap_socket(connected, server_hostname=target.host.rstrip("."))
            except ValueError as problem:  # a name that is invalid in TLS
                raise NotFetched(Failure("tls", f"{target.host}: {problem}")) from problem
            on_failure.pop_all()
            return secured


def _drained(response: http.client.HTTPResponse, connection: Connection) -> bool:
    """Whether the body has been read to its end, after reading the rest of a small one."""
    left = _DRAINED
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        connection.link.deadline = Deadline(_DRAIN_S, _DRAIN_S)
        while not _is_whole(response) and left > 0 and (response.length or 0) <= _DRAINED:
            left -= len(response.read1(left)) or left
    return _is_whole(response)


def _is_whole(response: http.client.HTTPResponse) -> bool:
    return response.isclosed() if response.chunked else response.length == 0
