"""Reusable connections to checked addresses; no wait exceeds the deadline.

http.client speaks the protocol over a `Link`, which takes the role of its socket. Proxy environment variables are
ignored: a proxy resolves names itself, so the address would go unchecked.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..outcome import Failure, NotFetched
from . import ssrf_guard
from .deadline import Deadline
from .resolver import Resolver

_MOST_ADDRESSES = 4  # tried per name before giving up
_MOST_IDLE = 64
_IDLE_S = 10.0
_BUFFER = 1 << 16
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
    def origin(self) -> tuple[str, str, int]:
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


class _Reader(io.RawIOBase):
    """The receiving side of a link. No read waits beyond the deadline."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.ended:
            return 0
        self.link.socket.settimeout(self.link.deadline.wait_s())
        return self.link.socket.recv_into(buffer)


class _Buffer(io.BufferedReader):
    """The receiving side as http.client reads it: one per response."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__(reader, _BUFFER)
        self.reader = reader

    def close(self) -> None:
        """Close it, and note whether there were bytes beyond the response."""
        if not self.closed:
            self.reader.ended = True  # so that peek returns buffered bytes without waiting
            self.reader.link.has_leftovers = bool(self.peek())
        super().close()


class Link:
    """A connected socket with a deadline, with the interface that http.client needs."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self.socket = connected
        self.deadline = deadline
        self.has_leftovers = False

    def makefile(self, *_: Any) -> io.BufferedReader:
        """The receiving side."""
        return _Buffer(_Reader(self))

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.settimeout(self.deadline.wait_s())
        self.socket.sendall(data)

    def close(self) -> None:
        """No-op: http.client calls this before the body is read. `Connection.close` closes the socket."""

    def is_quiet(self) -> bool:
        """Whether nothing arrived since the last response: neither end of stream nor unsolicited bytes."""
        if self.has_leftovers:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)


class Connection:
    """One request after another to the same origin, at the same address."""

    def __init__(self, target: Target, link: Link) -> None:
        self.origin = target.origin
        self.link = link
        self.idle_since = 0.0
        self.http = http.client.HTTPConnection(target.host, target.port)
        self.http.default_port = 443 if target.scheme == "https" else 80  # omitted from the Host header
        self.http.auto_open = 0  # it never connects by itself

    def request(self, target: Target, headers: Mapping[str, str], deadline: Deadline) -> http.client.HTTPResponse:
        """Send a request; returns the response, its body unread."""
        self.link.deadline = deadline
        self.http.sock = self.link  # type: ignore[assignment]
        self.http.request("GET", target.path, headers=dict(headers))
        return self.http.getresponse()

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
        self.lock = threading.Lock()
        self.idle: collections.deque[Connection] = collections.deque()

    def ask(
        self, target: Target, headers: Mapping[str, str], deadline: Deadline
    ) -> tuple[Connection, http.client.HTTPResponse]:
        """Send a GET. The caller ends with `give_back` or the connection's `close`."""
        used = self._take(target)
        if used is not None:
            try:
                return _asked(used, target, headers, deadline)
            except _STALE:
                pass  # closed while sending: not a response, so it does not count as an attempt
        return _asked(Connection(target, self._connect(target, deadline)), target, headers, deadline)

    def give_back(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Keep the connection for another request if the response was read completely; close it otherwise."""
        whole = response.isclosed() if response.chunked else response.length == 0
        will_close = response.will_close
        response.close()
        if will_close or not whole:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        with self.lock:
            self.idle.append(connection)
            dropped = self.idle.popleft() if len(self.idle) > _MOST_IDLE else None
        if dropped is not None:
            dropped.close()

    def _take(self, target: Target) -> Connection | None:
        oldest = time.monotonic() - _IDLE_S
        with self.lock:
            found = next((kept for kept in self.idle if kept.origin == target.origin), None)
            if found is None:
                return None
            self.idle.remove(found)
        if found.idle_since > oldest and found.link.is_quiet():
            return found
        found.close()
        return None

    def _connect(self, target: Target, deadline: Deadline) -> Link:
        found = self.resolver.addresses(target.host, deadline.wait_s())
        usable = ssrf_guard.usable(target.host, target.port, found, self.allow_hosts)[:_MOST_ADDRESSES]
        problem: OSError = OSError("no address")
        for address in usable:
            try:
                connected = self.dial((address, target.port), deadline.wait_s())
            except OSError as refused:
                problem = refused
                continue
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


def _asked(
    connection: Connection, target: Target, headers: Mapping[str, str], deadline: Deadline
) -> tuple[Connection, http.client.HTTPResponse]:
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        response = connection.request(target, headers, deadline)
        on_failure.pop_all()
        return connection, response
